"""Requests with views: validation, form on the wire, the client over a scripted transport, the command."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffsplat_client import (
    CONTRACT_VERSION,
    Client,
    InvalidRequestError,
    Reconstruction,
    ReconstructionRequest,
    RequestTimeoutError,
    ServerError,
    ServerUnavailableError,
    four_views,
    read_ply,
)
from diffsplat_client.cli import main
from diffsplat_client.contract import RECONSTRUCTION, RECONSTRUCTION_TENSORS
from diffsplat_client.poses import poses_of
from diffsplat_client.transport import TransportError

SIDE = 16


def orbit(azimuth_deg: float, elevation_deg: float, distance: float = 1.4) -> np.ndarray:
    """A camera that looks at the origin, upright: [4, 4]."""
    a, e = np.radians((azimuth_deg, elevation_deg))
    backward = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(-backward, right), -backward, distance * backward], axis=1)
    return pose


def views(**changes: Any) -> dict[str, Any]:
    random = np.random.default_rng(0)
    fields = {
        "images": random.integers(0, 255, (4, SIDE, SIDE, 3), np.uint8),
        "camera_to_world": np.stack([orbit(azimuth, 10) for azimuth in (0, 90, 180, 270)]),
        "intrinsics": np.tile([1.39, 1.39, 0.5, 0.5], (4, 1)),
        "normals": random.random((4, SIDE, SIDE, 3)),
        "coords": random.normal(0.5, 0.5, (4, SIDE, SIDE, 3)).astype(np.float32),
    }
    return fields | changes


def changed(name: str, where: Any, value: float) -> dict[str, Any]:
    array = np.array(views()[name], np.float32) / (255 if name == "images" else 1)
    array[where] = value
    return {name: array}


def test_views_survive_the_wire() -> None:
    """Floats as float32, bytes divided by 255; fields that are None are not sent."""
    poses = four_views()
    sent = ReconstructionRequest(**views(), formats=("ply",), frame_size=64, frame_poses=poses).validate()
    tensors = sent.to_tensors()
    specs = {spec.name: spec for spec in RECONSTRUCTION_TENSORS}
    assert set(specs) - set(tensors) == {"METALLIC_ROUGHNESS", "NUM_GAUSSIANS", "DEADLINE_S"}
    for name, array in tensors.items():
        assert len(array.shape) == len(specs[name].dims)
        assert array.dtype == {"FP32": np.float32, "INT32": np.int32, "BYTES": np.object_}[specs[name].datatype]
    got = ReconstructionRequest.from_tensors(tensors).validate()
    np.testing.assert_array_equal(got.images, sent.images.astype(np.float32) / 255)
    for name in ("normals", "coords", "camera_to_world", "intrinsics", "frame_poses"):
        np.testing.assert_array_equal(getattr(got, name), np.asarray(getattr(sent, name), np.float32))
    assert (got.formats, got.frame_size, got.opacity_threshold_asset) == (("ply",), 64, 0.0)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"images": np.zeros((4, SIDE, SIDE))}, r"images has shape \[4, 16, 16\]: must be \[V, H, W, 3\]"),
    "not square": ({"images": np.zeros((4, SIDE, 8, 3))}, "images has shape .* with H = W"),
    "too many": ({"images": np.zeros((17, 1, 1, 3))}, r"images has V = 17: must be in 1 \.\. 16"),
    "none": ({"images": np.zeros((0, 1, 1, 3))}, r"images has V = 0: must be in 1 \.\. 16"),
    "too large": ({"images": np.zeros((1, 1025, 1025, 3), np.uint8)}, r"H = W = 1025: must be in 1 \.\. 1024"),
    "integers": ({"images": np.zeros((4, SIDE, SIDE, 3), int)}, "images has type int64: must be floats, or uint8"),
    "not numbers": ({"images": [["x"]]}, "images has type .*: must be floats, or uint8"),
    "ragged": ({"images": [[0.0], [0.0, 1.0]]}, "images is not an array"),
    "too bright": (changed("images", (1, 2, 3, 0), 255.0), r"images\[1, 2, 3, 0\] = 255: must be in 0 \.\. 1"),
    "NaN": (changed("normals", (0, 0, 0, 2), np.nan), r"normals\[0, 0, 0, 2\] = nan: must be in 0 \.\. 1"),
    "raw normals": (changed("normals", (3, 0, 0, 1), -0.5), r"normals\[3, 0, 0, 1\] = -0\.5: must be in 0 \.\. 1"),
    "far": (changed("coords", (0, 0, 0, 0), 11.0), r"coords\[0, 0, 0, 0\] = 11: must be in -10 \.\. 10"),
    "infinite": (changed("coords", (0, 1, 0, 0), np.inf), r"coords\[0, 1, 0, 0\] = inf: must be"),
    "coarse": ({"coords": np.zeros((4, SIDE, SIDE, 3), np.uint8)}, "coords has type uint8: must be floats$"),
    "other size": ({"coords": np.zeros((4, 8, 8, 3))}, r"coords has shape \[4, 8, 8, 3\]: must be \[4, 16, 16, 3\]"),
    "three poses": ({"camera_to_world": np.eye(4)[None].repeat(3, 0)}, r"\[3, 4, 4\]: must be \[4, 4, 4\]"),
    "pose NaN": (changed("camera_to_world", (2, 0, 3), np.nan), r"camera_to_world\[2\] holds a value that is not fin"),
    "scaled": (changed("camera_to_world", (1, slice(3), slice(3)), 2.0), r"camera_to_world\[1\] is not a rigid pose"),
    "mirrored": ({"camera_to_world": views()["camera_to_world"] * [-1, 1, 1, 1]}, r"\[0\] is not a rigid pose .* -1\)"),
    "transposed": ({"camera_to_world": views()["camera_to_world"].swapaxes(1, 2)}, r"\[0\] is not a rigid pose"),
    "at the origin": ({"camera_to_world": np.eye(4)[None].repeat(4, 0)}, r"the origin = 0: must be in 0\.5 \.\. 10"),
    "pixels": ({"intrinsics": np.full((4, 4), 512.0)}, r"intrinsics\[0\] fx, .* = 512: must be in 0\.1 \.\. 10"),
    "centre": (changed("intrinsics", (3, 2), np.nan), r"intrinsics\[3\] cx, .* = nan: must be in 0 \.\. 1"),
    "one camera": ({"intrinsics": np.ones(4)}, r"intrinsics has shape \[4\]: must be \[4, 4\]"),
    "frame size": ({"frame_size": 8}, r"frame_size = 8: must be in 16 \.\. 2048"),
    "formats": ({"formats": ("obj",)}, "formats = 'obj': must be one of raw, ply"),
    "open elevation": ({"frame_poses": four_views(np.nan)}, "frame_poses leaves an elevation open"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_before_anything_is_sent(fakes, case: str) -> None:
    fields, says = BAD[case]
    fake = fakes.transport()
    with pytest.raises(InvalidRequestError, match=says):
        Client(transport=fake).reconstruct(**views(**fields))
    assert fake.questions == 0


def answer(fakes, **tensors: np.ndarray) -> dict[str, np.ndarray]:
    timings = {f"TIMINGS_{stage.upper()}": fakes.text({stage: 2.0}) for stage in ("reconstruct", "package")}
    return {"GAUSSIANS": fakes.splats(), **timings, **tensors}


def serving(fakes, *script: Any) -> Any:
    fake = fakes.transport(*script)
    fake.config = {"contract_version": str(CONTRACT_VERSION), "bundle": "pico", "reconstruction": "4 views"}
    return fake


def test_the_client_sends_views_and_gets_splats(fakes) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    fake = serving(fakes, answer(fakes, FRAMES=frames))
    made = Client(transport=fake).reconstruct(**views(), frame_poses=four_views(), frame_size=16, timeout_s=9)
    assert isinstance(made, Reconstruction)
    np.testing.assert_array_equal(made.cloud.to_array(), fakes.splats())
    assert made.frames is not None and made.frames.shape == frames.shape and made.assets == {}
    assert made.timings_ms.pop("total") >= 0 and made.timings_ms == {"reconstruct": 2.0, "package": 2.0}
    ((model, tensors, request_id, timeout_s),) = fake.calls
    assert model == RECONSTRUCTION and made.request_id == request_id and 0 < timeout_s <= 9
    assert tensors["IMAGES"].shape == (4, SIDE, SIDE, 3) and "METALLIC_ROUGHNESS" not in tensors


def test_a_whole_request_may_be_given(fakes) -> None:
    request = ReconstructionRequest(**views())
    made = Client(transport=serving(fakes, answer(fakes))).reconstruct(request, opacity_threshold_asset=0.5)
    assert made.request.opacity_threshold_asset == 0.5 and made.request.images is request.images


@pytest.mark.parametrize(
    ("code", "message", "expected", "says"),
    [
        ("INVALID_ARGUMENT", "in ensemble 'diffsplat_reconstruct', images has", InvalidRequestError, "^images has"),
        ("UNAVAILABLE", "Socket closed", ServerUnavailableError, "went away"),
        ("DEADLINE_EXCEEDED", "", RequestTimeoutError, "timeout_s = 600"),
        ("INTERNAL", "reconstruct failed", ServerError, "reconstruct failed"),
    ],
)
def test_errors_are_typed(fakes, code: str, message: str, expected: type, says: str) -> None:
    with pytest.raises(expected, match=says):
        Client(transport=serving(fakes, TransportError(code, message))).reconstruct(**views())


def test_an_answer_that_breaks_the_contract_is_refused(fakes) -> None:
    with pytest.raises(ServerError, match="without GAUSSIANS"):
        Client(transport=serving(fakes, {})).reconstruct(**views())
    with pytest.raises(ServerError, match="FRAMES is missing"):
        Client(transport=serving(fakes, answer(fakes))).reconstruct(**views(), frame_poses=four_views())


def test_a_server_without_gsrecon_is_not_asked(fakes) -> None:
    fake = fakes.transport()
    with pytest.raises(ServerUnavailableError, match="host:1 makes no reconstructions: its bundle has no GSRecon"):
        Client("host:1", transport=fake).reconstruct(**views())
    assert fake.calls == []


def test_poses_of_cameras() -> None:
    """Also straight from above, where the position has no azimuth."""
    wanted = [(0, 10, 1.4), (90, -20, 2.0), (-135, 45, 0.7), (30, 90, 1.4), (-60, -90, 1.4)]
    poses = poses_of(np.stack([orbit(*values) for values in wanted]))
    np.testing.assert_allclose(poses[:, 1], [azimuth for azimuth, _, _ in wanted], atol=1e-4)
    np.testing.assert_allclose(poses[:, 0], np.clip([elevation for _, elevation, _ in wanted], -89, 89), atol=1e-4)
    np.testing.assert_allclose(poses[:, 2], [distance for _, _, distance in wanted], atol=1e-6)
    assert (poses[:, 3] == 1).all()


def test_the_command_writes_the_object_and_what_it_was_made_of(fakes, serve_fake, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "My chair.npz", **views())
    fake = serve_fake(serving(fakes, answer(fakes, FRAMES=np.zeros((4, 32, 32, 3), np.uint8))))
    command = ["reconstruct", str(tmp_path / "My chair.npz"), "-o", str(tmp_path / "out")]
    options = ["--frame-size", "32", "--turntable-frames", "0", "--no-viewer", "--opacity-threshold-asset", "0.25"]
    assert main(command + options) == 0
    folder = tmp_path / "out" / "my-chair"
    assert {path.name for path in folder.iterdir()} == {"splats.ply", "views.png", "reconstruction.json"}
    assert len(read_ply(folder / "splats.ply")) == len(fakes.splats())
    said = json.loads((folder / "reconstruction.json").read_text())
    assert said["request"]["images"] == [4, SIDE, SIDE, 3] and said["request"]["opacity_threshold_asset"] == 0.25
    assert said["splats"] == 5 and said["versions"]["server"]["bundle"] == "pico"
    ((_, tensors, _, _),) = fake.calls
    np.testing.assert_allclose(tensors["FRAME_POSES"][:, :2], [[10, 0], [10, 90], [10, 180], [10, -90]], atol=1e-4)
    assert "5 splats" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"images": np.zeros((1, 1, 1, 3))}, "has no array camera_to_world"),
        ({**views(), "depths": np.zeros(3)}, "has unexpected arrays depths: must be some of images, normals, coords"),
        ({**views(), "images": np.zeros((4, 9))}, r"images has shape \[4, 9\]"),
        (b"PK but no archive", "is not an .npz file"),
        (np.zeros(3), "is not an .npz file"),
        ({"images": np.array([None])}, "is not an .npz file of plain arrays"),
    ],
)
def test_a_bad_file_of_views_is_one_line(tmp_path: Path, capsys, content: Any, says: str) -> None:
    path = tmp_path / "views.npz"
    with path.open("wb") as file:
        if isinstance(content, dict):
            np.savez(file, **content)
        elif isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content)
    assert main(["reconstruct", str(path), "-o", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(says, said), said
    assert not (tmp_path / "out").exists()


def test_a_request_is_not_changed_by_sending_it() -> None:
    request = ReconstructionRequest(**views())
    before = {field.name: np.copy(getattr(request, field.name)) for field in dataclasses.fields(request)}
    request.validate().to_tensors()["IMAGES"][:] = 0
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(request, name), value)


def test_each_ensemble_says_itself_whether_it_is_ready(fakes) -> None:
    """While the edge has a stage of `diffsplat` loaded anew, reconstructions go on, and the other way round."""
    fake = serving(fakes, answer(fakes))
    fake.down = {"diffsplat"}
    client = Client("host:1", transport=fake)
    client.reconstruct(**views())
    with pytest.raises(ServerUnavailableError, match="host:1 is not ready"):
        client.generate("x")
    fake.down = {"diffsplat_reconstruct"}
    with pytest.raises(ServerUnavailableError, match="host:1 is not ready"):
        Client("host:1", transport=fake).reconstruct(**views())
