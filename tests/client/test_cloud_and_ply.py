"""Splat clouds and their .ply files: quantities, layout, damaged files, whole files or none."""

from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import SplatCloud, read_ply, write_ply
from diffsplat_client.files import atomic_path
from diffsplat_client.formats.ply import RECORD, SH_C0, decode_ply, encode_ply


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
    data = encode_ply(cloud)
    header, body = bytes(data).split(b"end_header\n", 1)
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 3\nproperty float x\n")
    assert len(body) == 3 * 59 == 3 * RECORD.itemsize
    record = np.frombuffer(body, RECORD)
    np.testing.assert_allclose(1 / (1 + np.exp(-record["opacity"])), cloud.opacity, rtol=1e-5)
    np.testing.assert_allclose(np.exp(record["scale_2"]), cloud.scales[:, 2], rtol=1e-4)
    np.testing.assert_allclose(0.5 + SH_C0 * record["f_dc_1"], cloud.rgb[:, 1], atol=1e-6)
    np.testing.assert_array_equal(record["rot_0"], cloud.quats_wxyz[:, 0])
    np.testing.assert_array_equal(record["red"], np.clip(cloud.rgb[:, 0] * 255, 0, 255).astype(np.uint8))


def test_extremes_stay_finite() -> None:
    array = np.zeros((2, 14), np.float32)
    array[:, 6] = [1, 1e-12]
    again = decode_ply(bytes(encode_ply(SplatCloud.from_array(array))))
    assert np.isfinite(again.to_array()).all()
    np.testing.assert_allclose(again.opacity, [1, 1e-6], atol=2e-6)


def test_reads_files_of_other_programs() -> None:
    """Other order, normals, higher harmonics, no byte colours, doubles, big endian, comments, elements behind."""
    cloud = make_cloud(4)
    own = np.frombuffer(bytes(encode_ply(cloud)).split(b"end_header\n", 1)[1], RECORD)
    names = ["nx", "f_rest_0", *reversed([name for name in RECORD.names or () if name not in ("red", "green", "blue")])]
    record = np.zeros(4, np.dtype([(name, ">f8") for name in names]))
    for name in names[2:]:
        record[name] = own[name]
    lines = ["ply", "format binary_big_endian 1.0", "comment made elsewhere", "element vertex 4"]
    lines += [f"property double {name}" for name in names]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header", ""]
    again = decode_ply("\n".join(lines).encode() + record.tobytes() + b"\x00")
    np.testing.assert_allclose(again.to_array(), cloud.to_array(), rtol=3e-5, atol=1e-6)


def test_every_truncation_is_refused() -> None:
    data = bytes(encode_ply(make_cloud(2)))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="ply"):
            decode_ply(data[:length])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ply\n", b"png\n", "not a .ply file"),
        (b"vertex 2", b"vertex 99999999999999999", "promises 99999999999999999 splats of 59 bytes, but 118 bytes"),
        (b"vertex 2", b"vertex -2", "first element must be `vertex`"),
        (b"vertex 2", b"vertex 0x2", "first element must be `vertex`"),
        (b"element vertex 2", b"element face 2\nelement vertex 2", "first element"),
        (b"binary_little_endian", b"ascii", "only binary"),
        (b"little_endian 1.0", b"little_endian 2.0", "only binary"),
        (b"property float opacity\n", b"", "'opacity' is missing"),
        (b"property float y", b"property float x", "not a property"),
        (b"property float y", b"property list uchar int y", "not a property"),
        (b"property float y", b"property quad y", "not a property"),
        (b"element vertex 2\n", b"nonsense\n", "no line of a .ply header"),
        (b"format binary_little_endian 1.0\n", b"", "names no format"),
        (b"end_header\n", b"comment " + b"x" * 70000, "header has no end"),
        (b"end_header\n", b"comment x\n" * 7000, "header has no end"),
    ],
)
def test_damaged_headers_are_named(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = tmp_path / "damaged.ply"
    data = bytes(encode_ply(make_cloud(2)))
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
