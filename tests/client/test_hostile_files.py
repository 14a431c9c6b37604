"""Compact files whose headers promise what is not there: refused, with field, value and range, before they are read."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard
from diffsplat_client.formats import FORMATS
from PIL import Image

from tests.splat_clouds import make_cloud

SPLATS = 3


def gzipped(change: Callable[[bytearray], None]) -> bytes:
    body = bytearray(zlib.decompress(FORMATS["spz"].write(make_cloud(SPLATS)), wbits=31))
    change(body)
    stream = zlib.compressobj(wbits=31)
    return stream.compress(bytes(body)) + stream.flush()


def put(kind: str, place: int, value: int) -> Callable[[bytearray], None]:
    return lambda body: struct.pack_into(kind, body, place, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("<I", 0, 0), r"begins with b'\\x00"),
        (put("<I", 4, 4), "version = 4: must be in 1 .. 3"),
        (put("<I", 4, 0), "version = 0: must be in 1 .. 3"),
        (put("<I", 8, 2**32 - 1), "splats = 4294967295: must be in 0 .. 10000000"),
        (put("<I", 8, 9_000_000), "promises 9000000 splats, which [0-9]+ bytes cannot hold"),
        (put("<I", 8, SPLATS + 1), "promises 4 splats in 80 bytes, but 60 follow"),
        (put("<I", 8, SPLATS - 1), "does not end after its 2 splats"),
        (put("<B", 12, 5), "degree = 5: must be in 0 .. 4"),
        (put("<B", 12, 1), "promises 3 splats in 87 bytes, but 60 follow"),
        (put("<B", 13, 24), "fraction_bits = 24: must be in 0 .. 23"),
        (lambda body: body.extend(b"more"), "does not end after its 3 splats"),
    ],
)
def test_spz_in_gzip(change: Callable[[bytearray], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FORMATS["spz"].read(gzipped(change))


ROW = 32  # where the table of a file of version 4 begins


def big_frame(body: bytearray) -> None:
    """A frame that unpacks to a gigabyte, where the table promises 27 bytes."""
    frame = zstandard.ZstdCompressor().compress(bytes(2**20))
    body[ROW : ROW + 8] = struct.pack("<Q", len(frame))
    body[ROW + 5 * 16 :] = frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("<I", 4, 3), "version = 3: must be in 4 .. 4"),
        (put("<I", 8, 2**31), "splats = 2147483648: must be in"),
        (put("<I", 8, 9_000_000), "stream 0 unpacks to 27 bytes: must be 81000000"),
        (put("<B", 15, 7), "streams = 7: must be"),
        (put("<I", 16, 2**31), "the table is at byte 2147483648"),
        (put("<I", 16, 8), "the table is at byte 8"),
        (put("<Q", ROW, 2**60), "stream 0 has 1152921504606846976 bytes, but"),
        (put("<Q", ROW + 8, 2**60), "stream 0 unpacks to 1152921504606846976 bytes: must be 27"),
        (big_frame, "stream 0 does not unpack to the 27 bytes"),
    ],
)
def test_spz_in_zstd(change: Callable[[bytearray], None], message: str) -> None:
    data = bytearray(FORMATS["spz4"].write(make_cloud(SPLATS)))
    change(data)
    with pytest.raises(ValueError, match=message):
        FORMATS["spz4"].read(bytes(data))


def test_older_versions_of_spz() -> None:
    """Version 1 has half-precision positions, both have rotations as three bytes."""
    positions = np.array([[0.5, -0.25, 1.0], [-2.0, 0.125, 0.0]])
    tail = bytes([255, 128]) + bytes([128] * 6) + bytes([160, 80, 0] * 2) + bytes([255, 128, 128, 128, 128, 128])
    fixed = np.rint(positions * 4096).astype("<i4").view(np.uint8).reshape(2, 3, 4)[:, :, :3].tobytes()
    for version, stored in ((1, positions.astype("<f2").tobytes()), (2, fixed)):
        stream = zlib.compressobj(wbits=31)
        header = struct.pack("<4sIIBBBB", b"NGSP", version, 2, 0, 12, 0, 0)
        cloud = FORMATS["spz"].read(stream.compress(header + stored + tail) + stream.flush())
        np.testing.assert_array_equal(cloud.positions, positions)
        np.testing.assert_allclose(cloud.scales[0], np.exp([0, -5, -10]), rtol=1e-6)
        np.testing.assert_allclose(np.abs(cloud.quats_wxyz), [[0, 1, 0, 0], [1, 0, 0, 0]], atol=0.1)


@pytest.mark.parametrize(("value", "message"), [(2048.0, r"= 2048: must be in -2048 \.\. 2048"), (-1e6, "= -1e[+]06")])
def test_spz_holds_no_positions_beyond_its_24_bits(value: float, message: str) -> None:
    cloud = make_cloud(3)
    cloud.positions[1, 2] = value
    with pytest.raises(ValueError, match=rf"positions\[1, 2\] {message}"):
        FORMATS["spz"].write(cloud)


def glb(change: Callable[[dict[str, Any]], object]) -> bytes:
    data = FORMATS["glb"].write(make_cloud(SPLATS))
    size = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + size])
    change(document)
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    head = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text) + len(rest), len(text), b"JSON")
    return head + text + rest


def extension(document: dict[str, Any]) -> dict[str, Any]:
    return document["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["accessors"][0].update(count=4), r"accessors\[0\] needs 48 bytes in steps of 12: .* has 36"),
        (lambda d: d["accessors"][0].update(count=2**53), "needs 108086391056891904 bytes"),
        (lambda d: d["accessors"][0].update(count=2), "ROTATION has 3 values: must have 2, as POSITION"),
        (lambda d: d["accessors"][0].update(count=-1), r"accessors\[0\].count = -1: must be a whole number"),
        (lambda d: d["accessors"][0].update(count="3"), r"accessors\[0\].count = '3': must be a whole number"),
        (lambda d: d["accessors"][0].update(type="VEC4"), "type = 'VEC4': must be 'VEC3' for POSITION"),
        (lambda d: d["accessors"][0].update(componentType=1), "componentType = 1: must be one of"),
        (lambda d: d["accessors"][0].update(sparse={}), r"accessors\[0\] is sparse"),
        (lambda d: d["accessors"][0].update(bufferView=99), r"bufferViews\[99\] is asked for, but there are 6"),
        (lambda d: d["bufferViews"][0].update(byteLength=2**40), r"bufferViews\[0\] ends at byte 1099511627776"),
        (lambda d: d["bufferViews"][0].update(byteStride=4), "needs 20 bytes in steps of 4"),
        (lambda d: d["buffers"][0].update(uri="http://127.0.0.1/a.bin"), "in another file or a data URI"),
        (lambda d: d["nodes"][0].update(children=[0]), r"nodes\[0\] has two parents"),
        (lambda d: d["nodes"][0].update(scale=[1, 2, 1]), "stretches or mirrors"),
        (lambda d: d["nodes"][0].update(scale=[-1, 1, 1]), "stretches or mirrors"),
        (lambda d: d["nodes"][0].update(translation=[0, 1e300, 0]), "must be numbers of less than 1e18"),
        (lambda d: d.update(scene=7), r"scenes\[7\] is asked for, but there are 1"),
        (lambda d: d.update(meshes={}), "meshes is no JSON array"),
        (lambda d: extension(d).update(kernel="cube"), "kernel = 'cube': must be 'ellipse'"),
        (lambda d: extension(d).update(extensions={"X_spz": {}}), "is compressed by X_spz"),
        (lambda d: d["meshes"][0]["primitives"][0].update(extensions={}), "no primitive of the scene has KHR_gauss"),
    ],
)
def test_glb(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FORMATS["glb"].read(glb(change))


def test_glb_deep_json() -> None:
    text = b'{"a":' * 100_000
    head = struct.pack("<4sIII4s", b"glTF", 2, 20 + len(text), len(text), b"JSON")
    with pytest.raises(ValueError, match="first chunk is not JSON"):
        FORMATS["glb"].read(head + text)


def sog(change: Callable[[dict[str, Any]], object] = lambda meta: None, **images: bytes) -> bytes:
    given, changed = io.BytesIO(FORMATS["sog"].write(make_cloud(SPLATS))), io.BytesIO()
    with zipfile.ZipFile(given) as old, zipfile.ZipFile(changed, "w") as new:
        meta = json.loads(old.read("meta.json"))
        change(meta)
        new.writestr("meta.json", json.dumps(meta))
        for name in old.namelist()[1:]:
            new.writestr(name, images.get(name.removesuffix(".webp"), old.read(name)))
    return changed.getvalue()


def webp(width: int, height: int, kind: str = "WEBP") -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (width, height)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=1), "version = 1: must be 2"),
        (lambda m: m.update(count=2**40), "count = 1099511627776: must be in 0 .. 10000000"),
        (lambda m: m.update(count=17), "has 16 pixels: must be in 17 .. 20000000"),
        (lambda m: m.update(count=True), "count = True"),
        (lambda m: m["means"].update(mins=[0, 0]), r"means.mins = \[0, 0\]: must be 3 finite numbers"),
        (lambda m: m["means"].update(maxs=[0, 0, float("inf")]), "means.maxs"),
        (lambda m: m["scales"].update(codebook=[0.0] * 255), "scales.codebook"),
        (lambda m: m["sh0"].update(codebook=[0.0] * 255 + ["x"]), "sh0.codebook"),
        (lambda m: m["sh0"].update(files=["../../etc/passwd"]), "holds no ../../etc/passwd"),
        (lambda m: m.pop("quats"), "meta.json lacks 'quats'"),
    ],
)
def test_sog(change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FORMATS["sog"].read(sog(change))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (webp(4, 4, "PNG"), "quats.webp is no complete WebP image"),
        (webp(1, 1), "has 1 pixels: must be in 3"),
        (webp(4, 4), r"quats: alpha = 0: must be in 252 \.\. 255"),
        (webp(40, 40)[:30], "quats.webp is no complete WebP image"),
    ],
)
def test_images_of_a_sog(image: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FORMATS["sog"].read(sog(quats=image))


def test_a_member_of_a_sog_that_unpacks_to_much_more() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("meta.json", b" " * 2**24)
    with pytest.raises(ValueError, match="meta.json unpacks to 16777216 bytes: must be 1048576 or fewer"):
        FORMATS["sog"].read(file.getvalue())
