""".ply files of other programs: every container, other elements and properties, SuperSplat's compressed form."""

from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import SplatCloud, read_ply
from diffsplat_client.formats.ply import COLUMNS, RECORD, SH_C0, decode_ply, encode_ply

DATA = Path(__file__).parent / "data"
# what these hold: five splats, as the numbers of the ASCII file say
FIVE = np.array([line.split() for line in (DATA / "ascii.ply").read_text().splitlines()[-5:]], np.float64)


def make_cloud(count: int) -> SplatCloud:
    rng = np.random.default_rng(count)
    array = rng.uniform(0.01, 0.99, (count, 14)).astype(np.float32)
    return SplatCloud.from_array(array)


@pytest.mark.parametrize("name", ["ascii", "element_before", "comment_long"])
def test_containers_of_other_programs(name: str) -> None:
    """The third has the layout of the published script, whose y is up; the others are in the frame of 3DGS tools."""
    cloud = read_ply(DATA / f"{name}.ply")
    up = 1 if name == "comment_long" else -1
    np.testing.assert_allclose(cloud.positions, FIVE[:, :3] * [1, up, up], rtol=1e-6)
    np.testing.assert_allclose(cloud.rgb, 0.5 + SH_C0 * FIVE[:, 3:6], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cloud.opacity, 1 / (1 + np.exp(-FIVE[:, 6])), rtol=1e-5)
    np.testing.assert_allclose(cloud.scales, np.exp(FIVE[:, 7:10]), rtol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(cloud.quats_wxyz, axis=1), np.linalg.norm(FIVE[:, 10:], axis=1), rtol=1e-5
    )


@pytest.mark.parametrize(("kind", "order"), [("binary_big_endian", ">"), ("binary_little_endian", "<"), ("ascii", "")])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_other_layouts(kind: str, order: str, newline: str) -> None:
    """Another order, normals, higher harmonics, doubles, comments, elements before and after."""
    cloud = make_cloud(4)
    own = np.frombuffer(encode_ply(cloud, "opengl").split(b"end_header\n", 1)[1], RECORD)
    names = ["nx", "f_rest_0", *reversed(COLUMNS)]
    record = np.zeros(4, np.dtype([(name, f"{order or '<'}f8") for name in names]))
    for name in names[2:]:
        record[name] = own[name]
    camera = np.array([(1, 2.5), (3, 4.5)], np.dtype([("id", f"{order or '<'}i2"), ("fx", f"{order or '<'}f4")]))
    lines = ["ply", f"format {kind} 1.0", "comment made elsewhere", "comment frame opengl", "obj_info none"]
    lines += ["element camera 2", "property short id", "property float fx"]
    lines += ["element empty 3", f"element vertex {len(cloud)}"] if order else [f"element vertex {len(cloud)}"]
    lines += [f"property double {name}" for name in names]
    lines += ["element face 1", "property list uchar int vertex_indices", "end_header", ""]
    if order:
        body = camera.tobytes() + record.tobytes() + b"\x00"
    else:
        rows = [*camera.tolist(), *record.tolist(), (3, 0, 1, 2)]
        body = newline.join(" ".join(map(repr, row)) for row in rows).encode()
    again = decode_ply(newline.join(lines).encode() + body)
    np.testing.assert_allclose(again.to_array(), cloud.to_array(), rtol=3e-5, atol=1e-6)


def test_lists_before_the_splats_are_skipped_in_ascii() -> None:
    lines = (
        (DATA / "ascii.ply")
        .read_text()
        .replace("element vertex", "element face 1\nproperty list uchar int i\nelement vertex")
    )
    data = lines.replace("end_header\n", "end_header\n3 0 1 2\n").encode()
    np.testing.assert_array_equal(decode_ply(data).to_array(), read_ply(DATA / "ascii.ply").to_array())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("vertex 5", "vertex 6", "promises 6 x `vertex`, but 5 lines"),
        ("-0.128534659743309021 ", "", "`vertex` 0 has 13 numbers: must have 14"),
        ("-0.128534659743309021", "left", "a value that is not a number"),
    ],
)
def test_damaged_ascii_is_named(old: str, new: str, message: str) -> None:
    text = (DATA / "ascii.ply").read_text()
    assert old in text
    with pytest.raises(ValueError, match=message):
        decode_ply(text.replace(old, new, 1).encode())


class TestSuperSplat:
    """Two chunks of a file written by splat-transform, and the splats it was given."""

    def test_the_compressed_form_is_read(self) -> None:
        compressed = read_ply(DATA / "supersplat_chunks.ply")
        given = read_ply(DATA / "published_layout.ply", frame="3dgs")  # splat-transform left the axes alone
        assert len(compressed) == len(given) == 320
        extent = given.positions.max(axis=0) - given.positions.min(axis=0)
        assert (np.abs(compressed.positions - given.positions) <= extent / 1023).all()
        np.testing.assert_allclose(compressed.rgb, given.rgb, atol=1 / 255)
        np.testing.assert_allclose(compressed.opacity, given.opacity, atol=0.51 / 255)
        np.testing.assert_allclose(np.log(compressed.scales), np.log(given.scales), atol=4 / 1023)
        cosine = np.abs((compressed.quats_wxyz * given.quats_wxyz).sum(axis=1))
        assert cosine.min() > 0.99999
        assert np.unique(np.abs(given.quats_wxyz).argmax(axis=1)).size > 1  # not one component alone is the largest

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (b"packed_scale", b"packed_shape", "without the property 'packed_scale'"),
            (b"float max_x", b"float top_x", "without the property 'max_x'"),
            (b"element chunk 2", b"element chunk 1", "chunks for 320 splats|promises"),
            (b"vertex 320", b"vertex 321", "promises 321 x `vertex`"),
        ],
    )
    def test_damaged_files_are_named(self, old: bytes, new: bytes, message: str) -> None:
        data = (DATA / "supersplat_chunks.ply").read_bytes()
        assert old in data
        with pytest.raises(ValueError, match=message):
            decode_ply(data.replace(old, new, 1))
