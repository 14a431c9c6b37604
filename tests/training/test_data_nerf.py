"""Own renders with a transforms.json, as NeRF tools write it."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest

from diffsplat.backbones import PICO
from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from training.config.common import Data
from training.data.checks import check_object
from training.data.command import main
from training.data.dataset import Dataset
from training.data.open_path import open_selected
from training.data.procedural.render import render_views
from training.data.procedural.synthetic import layout_cameras, synthetic_object
from training.data.source import open_source
from training.data.views import Ring, ViewLayout

SIDE = 40
RIG = ViewLayout((Ring(0, 8, (15.0, 15.0), 1.0), Ring(8, 4, (-5.0, -5.0), 1.0)), None, None, (), others=3)
DISTANCE, CENTRE = 3.0, np.array([0.3, -0.2, 0.5])  # as a scene of its own unit and place has them
ORDER = np.random.default_rng(0).permutation(RIG.count)  # of the file's frames


def write_object(folder: Path, number: int, maps: bool = True, file: str = "transforms.json") -> np.ndarray:
    """Render an object and write its frames; the cameras in the z-up world of the object."""
    made = synthetic_object(0, number)
    cameras = layout_cameras(RIG, 1.4, np.random.default_rng(1))
    for view in range(12, 15):  # the others: somewhere above
        turned = synthetic_object(0, view).camera_to_world_zup[3]
        cameras[view] = turned
    views = render_views(made.primitives, cameras, SIDE)
    (folder / "images").mkdir(parents=True)
    frames = []
    for view in ORDER.tolist():
        name = f"images/r_{view}"
        rgba = np.rint(views.rgba[view] * 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), rgba[..., [2, 1, 0, 3]])
        pose = cameras[view] @ np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's axes
        pose[:3, 3] = pose[:3, 3] * DISTANCE / 1.4 + CENTRE
        frame = {"file_path": f"./{name}", "transform_matrix": pose.tolist()}
        if maps:
            depth = np.rint(views.depths[view] * DISTANCE / 1.4 * 1000).astype(np.uint16)
            cv2.imwrite(str(folder / f"{name}_depth.png"), depth)
            x, y, z = np.moveaxis(views.normals[view], -1, 0)
            normal = np.stack([x, -z, y], axis=-1)  # z-up
            header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
            channels = {name: np.ascontiguousarray(normal[..., place]) for place, name in enumerate("RGB")}
            OpenEXR.File(header, channels).write(str(folder / f"{name}_normal.exr"))
            frame |= {"depth_file_path": f"{name}_depth.png", "normal_file_path": f"{name}_normal.exr"}
        frames.append(frame)
    facts = {"camera_angle_x": 2 * math.atan(0.5 / DIFFSPLAT_FOCAL), "frames": frames}
    (folder / file).write_text(json.dumps(facts))
    return cameras


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("renders")
    for number in range(3):
        write_object(root / f"thing{number}", number)
        (root / f"thing{number}.txt").write_text(f"thing {number}\n")
    return root


def data_of(root: Path) -> Data:
    return Data(source=str(root), objects=0, validation_objects=1, first_views=())


def test_views_cameras_and_maps_are_those_rendered(renders: Path) -> None:
    source = open_selected(data_of(renders), None)
    assert source.provides() == {"rgb", "normal", "depth", "caption"}
    assert [(ring.first, ring.count) for ring in source.layout.rings] == [(0, 4), (4, 8)]
    assert source.layout.count == RIG.count and source.usable_views(0) == tuple(range(RIG.count))
    packed = source.views(0, range(12))
    made = synthetic_object(0, 0)
    again = render_views(made.primitives, packed.camera_to_world_zup, SIDE)
    np.testing.assert_allclose(np.linalg.norm(packed.camera_to_world_zup[:, :3, 3], axis=1), 1.4, atol=0.02)
    assert np.abs(packed.rgba / 255.0 - again.rgba)[again.rgba[..., 3] == 1].mean() < 0.01
    measured = check_object(packed)
    assert measured.reprojection_px < 0.2 and measured.normal_deg < 10 and measured.aim_deg < 0.5
    assert measured.orbit_deg < 0.5 and measured.lost_share < 0.02


def test_samples_start_on_any_ring(renders: Path) -> None:
    geometry = PICO.geometry  # 32 pixels: the images are shrunk
    objects = Dataset(open_source(data_of(renders), geometry, False), num_views=6)
    for seed in range(6):
        sample = objects.sample(seed % 2, np.random.default_rng(seed))
        x, _, z = sample.camera_to_world[:4, :3, 3].T
        azimuths = np.degrees(np.arctan2(x, z)) % 360
        np.testing.assert_allclose(azimuths, [0, 90, 180, 270], atol=0.5)
        assert sample.images_rgb.shape == (6, 3, 32, 32) and sample.caption.startswith("thing ")


def test_another_angle_of_view_and_centre_are_brought_to_the_standard(renders: Path, tmp_path: Path) -> None:
    """The same pictures inside a wider frame: intrinsics tell, and the views come out the same."""
    border = (10, 20, 6, 24)  # top, bottom, left, right
    folder = renders / "thing1"
    facts = json.loads((folder / "transforms.json").read_text())
    wide = {
        "fl_x": DIFFSPLAT_FOCAL * SIDE, "fl_y": DIFFSPLAT_FOCAL * SIDE, "cx": SIDE / 2 + border[2],
        "cy": SIDE / 2 + border[0], "frames": [],
    }  # fmt: skip
    (tmp_path / "a" / "images").mkdir(parents=True)
    for frame in facts["frames"]:
        image = cv2.imread(str(folder / f"{frame['file_path']}.png"), cv2.IMREAD_UNCHANGED)
        image = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
        colours, alpha = image[..., :3], image[..., 3]
        cv2.imwrite(str(tmp_path / "a" / f"{frame['file_path']}.png"), colours)
        cv2.imwrite(str(tmp_path / "a" / f"{frame['file_path']}_mask.png"), alpha)
        wide["frames"].append({**frame, "mask_path": f"{frame['file_path']}_mask.png"})
    for frame in wide["frames"]:
        del frame["depth_file_path"], frame["normal_file_path"]
    (tmp_path / "a" / "transforms_train.json").write_text(json.dumps(wide))
    source = open_selected(data_of(tmp_path), 35)
    assert source.provides() == {"rgb"}
    plain = open_selected(data_of(renders), 35)
    first, second = source.views(0, (0, 5)), plain.views(1, (0, 5))
    both = np.minimum(first.rgba[..., 3], second.rgba[..., 3]) == 255
    assert (first.rgba[..., 3] > 0).mean() > 0.05
    # the wide frame is 70 pixels, so the standard view is sampled more finely
    assert np.abs(first.rgba[..., 3].astype(int) - second.rgba[..., 3]).mean() < 2.0
    assert np.abs(first.rgba.astype(int) - second.rgba)[both].mean() < 2.0


def test_converted_renders_keep_their_rig(renders: Path, tmp_path: Path) -> None:
    assert main(["convert", str(renders), str(tmp_path / "out"), "--side", "20"]) == 0
    source, original = open_selected(data_of(tmp_path / "out"), None), open_selected(data_of(renders), 20)
    assert source.layout == original.layout
    np.testing.assert_array_equal(source.views(2, (0, 14)).rgba, original.views(2, (0, 14)).rgba)
    assert main(["check", str(tmp_path / "out")]) == 0


def test_what_is_wrong_is_named(renders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def open_with(change: dict[str, object], name: str) -> None:
        facts = json.loads((renders / "thing0" / "transforms.json").read_text())
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "transforms.json").write_text(json.dumps({**facts, **change}))
        open_selected(data_of(tmp_path / name), None).views(0, (0,))

    with pytest.raises(ValueError, match="transforms.json: has no field 'frames'|needs frames"):
        open_with({"frames": []}, "empty")
    line = [{"file_path": "x", "transform_matrix": np.eye(4).tolist()} for _ in range(3)]
    with pytest.raises(ValueError, match="all cameras stand at one point"):
        open_with({"frames": line}, "point")
    frames = json.loads((renders / "thing0" / "transforms.json").read_text())["frames"]
    with pytest.raises(ValueError, match="the 3 cameras of few form no ring of 4"):
        open_with({"frames": frames[:3]}, "few")
    with pytest.raises(ValueError, match=r"r_\d+\S* cannot be read: No such file"):
        open_with({}, "images")
    assert main(["check", str(renders)]) == 0
    assert "0 with faults" in capsys.readouterr().out
