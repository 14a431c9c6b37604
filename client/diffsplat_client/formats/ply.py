"""Splat clouds as .ply files of 3D Gaussian splatting, which every splat viewer opens.

One record of 59 bytes per splat: centre, colour as spherical harmonic of degree 0, logit of the opacity, logarithm of
the scales, quaternion (w, x, y, z), all float32, and the colour once more as three bytes for viewers of point clouds.
The same order and arithmetic as the DiffSplat reference (without normals and higher harmonics).
"""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.files import atomic_path

SH_C0 = 0.28209479177387814  # spherical harmonic of degree 0
OPACITY_MARGIN = np.float32(1e-6)  # opacities are clamped this far from 0 and 1 before the logit
SCALE_MARGIN = np.float32(1e-8)  # added to scales before the logarithm
MAX_HEADER_BYTES = 64 * 1024

_FLOATS = ("x", "y", "z", *(f"f_dc_{i}" for i in range(3)), "opacity", *(f"scale_{i}" for i in range(3)))
_FLOATS += tuple(f"rot_{i}" for i in range(4))
_BYTES = ("red", "green", "blue")
RECORD = np.dtype([(name, "<f4") for name in _FLOATS] + [(name, "u1") for name in _BYTES])
_TYPES = {
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
}
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}


def nearest_log(values: np.ndarray) -> np.ndarray:
    """The float32 nearest to the logarithm of each float32.

    The same on every machine; the float32 logarithms of numpy and PyTorch differ in the last bit from CPU to CPU.
    """
    return np.log(values.astype(np.float64)).astype(np.float32)


def write_ply(
    path: str | os.PathLike[str], cloud: SplatCloud, opacity_threshold: float = 0.0, compatible: bool = True
) -> None:
    """Write the splats strictly more opaque than `opacity_threshold`; the file is whole or not there."""
    data = encode_ply(cloud, opacity_threshold, compatible)
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def encode_ply(
    cloud: SplatCloud,
    opacity_threshold: float = 0.0,
    compatible: bool = True,
) -> bytearray:
    """The bytes of the file.

    Args:
        cloud: the splats.
        opacity_threshold: splats must be strictly more opaque than this.
        compatible: what viewers expect; False writes opacity, scales and colours as they are.
    """
    cloud = cloud.threshold(opacity_threshold)
    header = _header(len(cloud))
    data = bytearray(len(header) + len(cloud) * RECORD.itemsize)
    data[: len(header)] = header
    records = np.frombuffer(data, RECORD, offset=len(header))
    dc, opacity, scales = cloud.rgb, cloud.opacity, cloud.scales
    if compatible:
        dc = (cloud.rgb - np.float32(0.5)) / np.float32(SH_C0)
        clamped = np.clip(opacity, OPACITY_MARGIN, np.float32(1) - OPACITY_MARGIN)
        opacity = nearest_log(clamped / (1 - clamped))
        scales = nearest_log(scales + SCALE_MARGIN)
    with np.errstate(invalid="ignore"):  # NaN has no byte; it becomes 0
        colors = np.clip(cloud.rgb * np.float32(255), 0, 255).astype(np.uint8)  # truncated, as the reference does
    _put(records, ("x", "y", "z"), cloud.positions)
    _put(records, ("f_dc_0", "f_dc_1", "f_dc_2"), dc)
    records["opacity"] = opacity
    _put(records, ("scale_0", "scale_1", "scale_2"), scales)
    _put(records, ("rot_0", "rot_1", "rot_2", "rot_3"), cloud.quats_wxyz)
    _put(records, _BYTES, colors)
    return data


def read_ply(path: str | os.PathLike[str], compatible: bool = True) -> SplatCloud:
    """Read a binary .ply of splats; properties it has besides those of `write_ply` are skipped.

    Nothing is allocated before the header's count has been held against the file's size.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    with Path(path).open("rb") as file:
        return _read(file, os.fstat(file.fileno()).st_size, str(path), compatible)


def decode_ply(data: bytes, compatible: bool = True) -> SplatCloud:
    """Inverse of `encode_ply`; errors as of `read_ply`."""
    return _read(io.BytesIO(data), len(data), "ply", compatible)


def _read(file: BinaryIO, size: int, name: str, compatible: bool) -> SplatCloud:
    count, record = _read_header(file, name)
    body = size - file.tell()
    if count * record.itemsize > body:
        raise ValueError(
            f"{name}: the header promises {count} splats of {record.itemsize} bytes, but {body} bytes follow it"
        )
    records = np.frombuffer(file.read(count * record.itemsize), record)
    dc = _take(records, ("f_dc_0", "f_dc_1", "f_dc_2"))
    opacity = records["opacity"].astype(np.float32)
    scales = _take(records, ("scale_0", "scale_1", "scale_2"))
    if compatible:
        dc = dc * np.float32(SH_C0) + np.float32(0.5)
        with np.errstate(over="ignore"):  # a very transparent splat: exp overflows, the opacity is 0
            opacity = 1 / (1 + np.exp(-opacity))
            scales = np.exp(scales)
    positions = _take(records, ("x", "y", "z"))
    return SplatCloud(positions, dc, opacity, scales, _take(records, ("rot_0", "rot_1", "rot_2", "rot_3")))


def _header(count: int) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    lines += [f"property float {name}" for name in _FLOATS]
    lines += [f"property uchar {name}" for name in _BYTES]
    return "\n".join([*lines, "end_header", ""]).encode("ascii")


def _read_header(file: BinaryIO, path: str) -> tuple[int, np.dtype]:
    """The number of splats and the layout of one; leaves `file` at the first of them."""
    if file.readline(8).strip() != b"ply":
        raise ValueError(f"{path}: not a .ply file")
    order, count, element = None, None, None
    fields: dict[str, str] = {}
    while True:
        line = file.readline(1024)
        words = line.decode("ascii", "replace").split()
        if not line.endswith(b"\n") or file.tell() > MAX_HEADER_BYTES:
            raise ValueError(f"{path}: the header has no end")
        match words:
            case ["end_header"]:
                break
            case ["format", kind, "1.0"] if kind in _BYTE_ORDERS:
                order = _BYTE_ORDERS[kind]
            case ["format", *_]:
                raise ValueError(f"{path}: {' '.join(words)!r}: only binary .ply files of version 1.0 are read")
            case ["element", "vertex", number] if element is None and number.isascii() and number.isdigit():
                count, element = int(number), "vertex"
            case ["element", name, _] if count is not None:
                element = name  # elements behind the splats are skipped
            case ["element", *_]:
                raise ValueError(f"{path}: {' '.join(words)!r}: the first element must be `vertex` with a count")
            case ["property", kind, name] if element == "vertex" and kind in _TYPES and name not in fields:
                fields[name] = _TYPES[kind]
            case ["property", *_] if element == "vertex":
                raise ValueError(f"{path}: {' '.join(words)!r}: not a property that a splat can have")
            case ["comment" | "obj_info" | "property", *_] | []:
                pass
            case _:
                raise ValueError(f"{path}: {' '.join(words)!r} is no line of a .ply header")
    if order is None or count is None:
        raise ValueError(f"{path}: the header names no {'format' if order is None else 'element `vertex`'}")
    if missing := [name for name in _FLOATS if name not in fields]:
        raise ValueError(f"{path}: no splats: the property {missing[0]!r} is missing")
    return count, np.dtype([(name, order + kind) for name, kind in fields.items()])


def _put(records: np.ndarray, names: tuple[str, ...], columns: np.ndarray) -> None:
    for i, name in enumerate(names):
        records[name] = columns[:, i]


def _take(records: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    return np.stack([records[name].astype(np.float32) for name in names], axis=1)
