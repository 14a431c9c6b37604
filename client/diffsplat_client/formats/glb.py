"""Splat clouds as .glb files: glTF 2.0 with the extension KHR_gaussian_splatting, uncompressed, y up.

A primitive of points whose attributes are float32: centre, rotation (x, y, z, w), scales, opacity, and the colour as
harmonic of degree 0 of sRGB values. Programs without the extension show the points in COLOR_0, which glTF wants linear.
https://github.com/KhronosGroup/glTF/tree/main/extensions/2.0/Khronos/KHR_gaussian_splatting
"""

import json
import struct
from typing import Any

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.axes import OPENGL, from_frame, to_frame
from diffsplat_client.formats.gltf import Document, Json
from diffsplat_client.formats.gltf_nodes import splat_primitives
from diffsplat_client.formats.packing import MAX_SPLATS, check_packable, unit_bytes, unit_quats
from diffsplat_client.formats.placing import placed
from diffsplat_client.formats.ply import SH_C0

EXTENSION = "KHR_gaussian_splatting"
POSITION, COLOR = "POSITION", "COLOR_0"
ROTATION, SCALE, OPACITY = (f"{EXTENSION}:{name}" for name in ("ROTATION", "SCALE", "OPACITY"))
HARMONIC = f"{EXTENSION}:SH_DEGREE_0_COEF_0"
_POINTS, _ARRAY_BUFFER, _FLOAT, _USHORT = 0, 34962, 5126, 5123  # glTF's numbers
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)  # of an sRGB byte
_LINEAR_USHORT = np.rint(65535 * _LINEAR).astype("<u2")


def encode_glb(cloud: SplatCloud, frame: str = OPENGL) -> bytes:
    """The bytes of a file with all splats of `cloud`, opacities clipped to [0, 1]; ValueError for a number like NaN."""
    check_packable(cloud)
    if not len(cloud):  # glTF has no empty arrays
        return _container({"scenes": [{"name": "no splats"}]}, [])
    cloud = to_frame(cloud, frame)
    color = np.empty((len(cloud), 4), "<u2")
    color[:, :3] = _LINEAR_USHORT[unit_bytes(cloud.rgb)]
    color[:, 3] = np.rint(np.clip(cloud.opacity, 0, 1) * np.float32(65535))
    attributes = {
        POSITION: cloud.positions,
        ROTATION: unit_quats(cloud.quats_wxyz)[:, [1, 2, 3, 0]],
        SCALE: cloud.scales,
        OPACITY: np.clip(cloud.opacity, 0, 1)[:, None],
        HARMONIC: (cloud.rgb - np.float32(0.5)) / np.float32(SH_C0),
        COLOR: color,
    }
    arrays = [array if name == COLOR else array.astype("<f4") for name, array in attributes.items()]
    accessors = [_accessor(i, array) for i, array in enumerate(arrays)]
    bounds = cloud.bounds()
    accessors[0] |= {"min": bounds.low.tolist(), "max": bounds.high.tolist()}
    primitive = {
        "attributes": {name: i for i, name in enumerate(attributes)},
        "mode": _POINTS,
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    about = {
        "extensionsUsed": [EXTENSION],
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "splats", "mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
    }
    return _container(about, arrays)


def _accessor(number: int, array: np.ndarray) -> dict[str, Any]:
    kind = {"componentType": _FLOAT} if array.dtype.kind == "f" else {"componentType": _USHORT, "normalized": True}
    return {"bufferView": number, "count": len(array), "type": _TYPES[array.shape[1]], **kind}


def _container(about: dict[str, Any], arrays: list[np.ndarray]) -> bytes:
    """The file: a header, the description, and the arrays one after the other; each is a multiple of 4 bytes."""
    document = {"asset": {"version": "2.0", "generator": "diffsplat"}, "scene": 0, **about}
    places = np.cumsum([0, *(array.nbytes for array in arrays)]).tolist()
    if arrays:
        document["bufferViews"] = [
            {"buffer": 0, "byteOffset": place, "byteLength": array.nbytes, "target": _ARRAY_BUFFER}
            for place, array in zip(places, arrays, strict=False)
        ]
        document["buffers"] = [{"byteLength": places[-1]}]
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    chunks = [struct.pack("<I4s", len(text), b"JSON"), text]
    if arrays:
        chunks += [struct.pack("<I4s", places[-1], b"BIN\0"), *(array.tobytes() for array in arrays)]
    return b"".join([struct.pack("<4sII", b"glTF", 2, 12 + sum(map(len, chunks))), *chunks])


def decode_glb(data: bytes, frame: str = "") -> SplatCloud:
    """The splats of all primitives of the default scene, placed by their nodes; higher harmonics are dropped.

    Args:
        data: the whole file.
        frame: its axes, one of `axes.FRAMES`; "" for glTF's.

    Raises:
        ValueError: naming what is wrong with the file, also that it holds no splats or that they are compressed.
    """
    document = Document.parse(data)
    if not document.items("meshes"):
        return from_frame(SplatCloud.from_array(np.empty((0, 14), np.float32)), frame or OPENGL)
    clouds, total = [], 0
    for primitive, matrix in splat_primitives(document, EXTENSION):
        cloud = _read_primitive(document, primitive)
        total += len(cloud)
        if total > MAX_SPLATS:
            raise ValueError(f"glb: {total} splats: must be {MAX_SPLATS} or fewer")
        clouds.append(placed(cloud, matrix, "glb: a node"))
    if not clouds:
        raise ValueError(f"glb: no primitive of the scene has {EXTENSION}")
    return from_frame(SplatCloud.from_array(np.concatenate([cloud.to_array() for cloud in clouds])), frame or OPENGL)


def _read_primitive(document: Document, primitive: Json) -> SplatCloud:
    about = primitive.child("extensions").child(EXTENSION)
    if inner := about.child("extensions", optional=True).names():
        raise ValueError(f"glb: {about.path} is compressed by {inner[0]}: only uncompressed splats are read")
    if (kernel := about.text("kernel")) != "ellipse":
        raise ValueError(f"glb: {about.path}.kernel = {kernel!r}: must be 'ellipse'")
    attributes = primitive.child("attributes")
    widths = {POSITION: 3, ROTATION: 4, SCALE: 3, OPACITY: 1, HARMONIC: 3}
    arrays = {name: document.accessor(attributes, name, _TYPES[width]) for name, width in widths.items()}
    for name, array in arrays.items():
        if len(array) != len(arrays[POSITION]):
            raise ValueError(f"glb: {name} has {len(array)} values: must have {len(arrays[POSITION])}, as {POSITION}")
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file may hold any float
        rgb = arrays[HARMONIC] * np.float32(SH_C0) + np.float32(0.5)
        if about.text("colorSpace").startswith("lin_"):
            rgb = _from_linear(rgb)
        quats = unit_quats(arrays[ROTATION])[:, [3, 0, 1, 2]]
    return SplatCloud(arrays[POSITION], rgb, arrays[OPACITY][:, 0], arrays[SCALE], quats)


def _from_linear(rgb: np.ndarray) -> np.ndarray:
    """Linear colours as sRGB ones; below 0 the curve's straight part goes on."""
    curved = 1.055 * np.maximum(rgb, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(rgb <= 0.0031308, 12.92 * rgb, curved).astype(np.float32)
