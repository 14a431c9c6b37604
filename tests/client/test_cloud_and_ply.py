"""Splat clouds and the .ply files written from them: quantities, layout, axes, damaged files, no partial files."""

from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import SplatCloud, read_ply, write_ply
from diffsplat_client.files import atomic_path
from diffsplat_client.formats.axes import FRAMES
from diffsplat_client.formats.ply import RECORD, SH_C0, decode_ply, encode_ply
from diffsplat_client.viewer import covariances


def make_cloud(count: int) -> SplatCloud:
    rng = np.random.default_rng(count)
    array = rng.normal(size=(count, 14)).astype(np.float32)
    array[:, 6] = rng.uniform(0.01, 0.99, count)
    array[:, 7:10] = rng.uniform(0.0005, 0.02, (count, 3))
    return SplatCloud.from_array(array)


def test_array_columns_and_back() -> None:
    array = np.arange(28, dtype=np.float32).reshape(2, 14)
    cloud = SplatCloud.from_array(array)
    assert cloud.positions[1].tolist() == [14, 15, 16] and cloud.rgb[0].tolist() == [3, 4, 5]
    assert cloud.opacity.tolist() == [6, 20] and cloud.scales[0].tolist() == [7, 8, 9]
    assert cloud.quats_wxyz[0].tolist() == [10, 11, 12, 13]
    np.testing.assert_array_equal(cloud.to_array(), array)
    assert len(cloud) == 2


def test_threshold_is_strict_and_bounds_are_the_box() -> None:
    array = np.zeros((3, 14), np.float32)
    array[:, 6] = [0.25, 0.5, 0.75]
    array[:, 0] = [-1, 2, 3]
    cloud = SplatCloud.from_array(array)
    assert cloud.threshold(0.5).positions[:, 0].tolist() == [3]
    assert cloud.threshold(0.1) is cloud
    bounds = cloud.bounds()
    assert bounds.low.tolist() == [-1, 0, 0] and bounds.high.tolist() == [3, 0, 0]
    with pytest.raises(ValueError, match="empty"):
        cloud.threshold(1).bounds()


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\[3, 13\]: must be \[N, 14\]"):
        SplatCloud.from_array(np.zeros((3, 13), np.float32))
    with pytest.raises(ValueError, match=r"opacity has shape \[2, 1\]: must be \[2\]"):
        SplatCloud(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 1)), np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_ply_round_trip(tmp_path: Path, count: int) -> None:
    cloud = make_cloud(count)
    write_ply(tmp_path / "a.ply", cloud)
    again = read_ply(tmp_path / "a.ply")
    assert len(again) == count
    np.testing.assert_allclose(again.to_array(), cloud.to_array(), rtol=3e-5, atol=1e-6)
    np.testing.assert_array_equal(decode_ply((tmp_path / "a.ply").read_bytes()).to_array(), again.to_array())


def test_ply_holds_what_viewers_expect() -> None:
    cloud = make_cloud(3)
    body = encode_ply(cloud, "opengl").split(b"end_header\n", 1)[1]
    assert len(body) == 3 * 56 == 3 * RECORD.itemsize
    record = np.frombuffer(body, RECORD)
    np.testing.assert_allclose(1 / (1 + np.exp(-record["opacity"])), cloud.opacity, rtol=1e-5)
    np.testing.assert_allclose(np.exp(record["scale_2"]), cloud.scales[:, 2], rtol=1e-4)
    np.testing.assert_allclose(0.5 + SH_C0 * record["f_dc_1"], cloud.rgb[:, 1], atol=1e-6)
    np.testing.assert_array_equal(record["y"], cloud.positions[:, 1])
    np.testing.assert_array_equal(record["rot_0"], cloud.quats_wxyz[:, 0])


@pytest.mark.parametrize("frame", FRAMES)
def test_the_header_is_one_that_strict_readers_take(frame: str) -> None:
    """The spz library: `format`, comments, `element vertex`, then float properties alone; Spark: no RGB columns."""
    header = encode_ply(make_cloud(3), frame).split(b"end_header\n", 1)[0].decode("ascii")
    magic, kind, *lines = header.splitlines()
    assert (magic, kind) == ("ply", "format binary_little_endian 1.0")
    assert lines[:2] == [f"comment frame {frame}", "element vertex 3"]
    names = [line.removeprefix("property float ") for line in lines[2:]]
    assert all(line.startswith("property float ") for line in lines[2:])
    assert not {"red", "green", "blue"} & set(names)
    assert names == list(RECORD.names or ())


def test_files_are_in_the_axes_of_3dgs_tools_unless_asked_otherwise() -> None:
    """y down, z away from the viewer: a splat above the origin has a negative y, and covariances rotate with it."""
    cloud = make_cloud(50)
    files = {frame: np.frombuffer(encode_ply(cloud, frame).split(b"end_header\n", 1)[1], RECORD) for frame in FRAMES}
    own, turned = files["opengl"], files["3dgs"]
    assert encode_ply(cloud) == encode_ply(cloud, "3dgs")
    np.testing.assert_array_equal(own["y"], cloud.positions[:, 1])
    for axis, sign in (("x", 1), ("y", -1), ("z", -1)):
        np.testing.assert_array_equal(turned[axis], sign * own[axis])
    axes = np.diag([1.0, -1.0, -1.0])
    quats = np.stack([turned[f"rot_{i}"] for i in range(4)], axis=1)
    in_file = covariances(SplatCloud(cloud.positions, cloud.rgb, cloud.opacity, cloud.scales, quats))
    np.testing.assert_allclose(in_file, axes @ covariances(cloud) @ axes, atol=1e-9)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_file_says_its_axes(tmp_path: Path, frame: str) -> None:
    cloud = make_cloud(7)
    write_ply(tmp_path / "a.ply", cloud, frame=frame)
    again = read_ply(tmp_path / "a.ply")
    np.testing.assert_array_equal(again.positions, cloud.positions)
    np.testing.assert_array_equal(again.quats_wxyz, cloud.quats_wxyz)
    other = next(name for name in FRAMES if name != frame)
    np.testing.assert_array_equal(read_ply(tmp_path / "a.ply", frame=other).positions[:, 1], -cloud.positions[:, 1])
    for wrong in (lambda: encode_ply(cloud, "y-up"), lambda: read_ply(tmp_path / "a.ply", frame="y-up")):
        with pytest.raises(ValueError, match="frame = 'y-up': must be one of opengl, 3dgs"):
            wrong()


def test_extremes_stay_finite() -> None:
    array = np.zeros((2, 14), np.float32)
    array[:, 6] = [1, 1e-12]
    again = decode_ply(encode_ply(SplatCloud.from_array(array)))
    assert np.isfinite(again.to_array()).all()
    np.testing.assert_allclose(again.opacity, [1, 1e-6], atol=2e-6)


def test_every_truncation_is_refused() -> None:
    data = encode_ply(make_cloud(2))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="ply"):
            decode_ply(data[:length])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ply\n", b"png\n", "not a .ply file"),
        (b"vertex 2", b"vertex 99999999999999999", "promises 99999999999999999 x `vertex` of 56 bytes, but 112 bytes"),
        (b"vertex 2", b"vertex -2", "an element needs a name and a count"),
        (b"vertex 2", b"vertex 0x2", "an element needs a name and a count"),
        (b"vertex 2", b"vertices 2", "names no element `vertex`"),
        (b"element vertex 2", b"element vertex 2\nelement vertex 2", "such an element already"),
        (b"element vertex 2", b"property float x\nelement vertex 2", "must follow an element"),
        (b"vertex 2", b"face 1\nproperty list uchar int i\nelement vertex 2", "`face` has lists"),
        (b"binary_little_endian", b"ascii", "a value that is not a number|must have 14|lines follow"),
        (
            b"binary_little_endian",
            b"binary_middle_endian",
            "format must be binary_little_endian, binary_big_endian, ascii",
        ),
        (b"little_endian 1.0", b"little_endian 2.0", "format must be"),
        (b"property float opacity\n", b"", "'opacity' of the element `vertex` is missing"),
        (b"property float y", b"property float x", "such a property already"),
        (b"property float y", b"property list uchar int y", "'y' of the element `vertex` is missing"),
        (b"property float y", b"property quad y", "not a property of a known type"),
        (b"element vertex 2\n", b"nonsense\n", "not a line of a .ply header"),
        (b"format binary_little_endian 1.0\n", b"", "names no format"),
        (b"end_header\n", b"comment " + b"x" * 70000, "header does not end within 65536 bytes"),
        (b"end_header\n", b"comment x\n" * 7000, "header does not end within 65536 bytes"),
    ],
)
def test_damaged_headers_are_named(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = tmp_path / "damaged.ply"
    data = encode_ply(make_cloud(2))
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"damaged.ply: .*{message}"):
        read_ply(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_ply(path, make_cloud(1))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as partial:  # noqa: PT012
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    write_ply(path, make_cloud(2))
    assert len(read_ply(path)) == 2 and list(tmp_path.iterdir()) == [path]
