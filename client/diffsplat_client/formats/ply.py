"""Splat clouds as .ply files of 3D Gaussian splatting, which every splat viewer opens.

One record of 56 bytes per splat: centre, colour as spherical harmonic of degree 0, logit of the opacity, logarithm of
the scales, quaternion (w, x, y, z), all float32. There are no RGB columns: some tools take a file with them for a
point cloud. The axes are those of 3DGS tools unless asked otherwise; a comment in the header names them.
"""

import io
import os
from pathlib import Path

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.files import atomic_path
from diffsplat_client.formats.axes import FRAMES, OPENGL, THREEDGS, from_frame, to_frame
from diffsplat_client.formats.ply_compressed import decode_compressed, is_compressed
from diffsplat_client.formats.ply_elements import Header, read_elements, read_header

SH_C0 = 0.28209479177387814  # spherical harmonic of degree 0
OPACITY_MARGIN = np.float32(1e-6)  # opacities are clamped this far from 0 and 1 before the logit
SCALE_MARGIN = np.float32(1e-8)  # added to scales before the logarithm

COLUMNS = ("x", "y", "z", *(f"f_dc_{i}" for i in range(3)), "opacity", *(f"scale_{i}" for i in range(3)))
COLUMNS += tuple(f"rot_{i}" for i in range(4))
RECORD = np.dtype([(name, "<f4") for name in COLUMNS])
# The published script's files: the same columns and these, always in our frame, without a comment that says so.
RGB_COLUMNS = ("red", "green", "blue")
_FRAME_COMMENT = "frame "


def write_ply(
    path: str | os.PathLike[str], cloud: SplatCloud, opacity_threshold: float = 0.0, frame: str = THREEDGS
) -> None:
    """Write the splats strictly more opaque than `opacity_threshold`; the file is either complete or absent.

    Args:
        path: the file.
        cloud: the splats, in our frame.
        opacity_threshold: 0 .. 1.
        frame: axes of the file, one of `axes.FRAMES`: `3dgs` is what splat tools expect, `opengl` is ours.
    """
    data = encode_ply(cloud.threshold(opacity_threshold), frame)
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def encode_ply(cloud: SplatCloud, frame: str = THREEDGS) -> bytes:
    """The bytes of a file with all splats of `cloud`."""
    # comments go before the first element: the spz library skips them only there
    lines = ["ply", "format binary_little_endian 1.0", f"comment {_FRAME_COMMENT}{frame}"]
    lines += [f"element vertex {len(cloud)}"]
    lines += [f"property float {name}" for name in COLUMNS]
    return encode_records(lines, RECORD, stored(to_frame(cloud, frame)))


def read_ply(path: str | os.PathLike[str], frame: str = "") -> SplatCloud:
    """Read a .ply of splats, binary or ASCII, or SuperSplat's compressed form, into our frame.

    Other properties than those of `write_ply` and other elements are skipped, higher harmonics too. Counts in
    the header are compared with the file's size before anything is allocated.

    Args:
        path: the file.
        frame: its axes, one of `axes.FRAMES`. By default those that a comment in the file names; without one
            `opengl` for files laid out exactly as the published DiffSplat script does, and `3dgs` for all others.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    return _read(Path(path).read_bytes(), str(path), frame)


def decode_ply(data: bytes, frame: str = "") -> SplatCloud:
    """Inverse of `encode_ply`; arguments and errors as for `read_ply`."""
    return _read(data, "ply", frame)


def _read(data: bytes, name: str, frame: str) -> SplatCloud:
    file = io.BytesIO(data)
    header = read_header(file, name)
    if is_compressed(header):
        cloud = decode_compressed(read_elements(file, header, ("chunk", "vertex"), name), name)
    else:
        cloud = linear(read_columns(file, header, name))
    return from_frame(cloud, frame or _frame_of(header))


def read_columns(file: io.BytesIO, header: Header, name: str) -> SplatCloud:
    """The columns as stored, without undoing logit, logarithm and harmonics."""
    vertex = header.element("vertex")
    if missing := [column for column in COLUMNS if column not in (vertex.fields if vertex else {})]:
        raise ValueError(f"{name}: no splats: the property {missing[0]!r} of the element `vertex` is missing")
    records = read_elements(file, header, ("vertex",), name)["vertex"]
    return SplatCloud(
        _take(records, "x", "y", "z"),
        _take(records, "f_dc_0", "f_dc_1", "f_dc_2"),
        records["opacity"].astype(np.float32),
        _take(records, "scale_0", "scale_1", "scale_2"),
        _take(records, "rot_0", "rot_1", "rot_2", "rot_3"),
    )


def linear(cloud: SplatCloud) -> SplatCloud:
    """Inverse of `stored`."""
    # a very transparent splat: exp overflows, the opacity is 0; a damaged file may hold any kind of NaN
    with np.errstate(over="ignore", invalid="ignore"):
        opacity, scales = 1 / (1 + np.exp(-cloud.opacity)), np.exp(cloud.scales)
        rgb = cloud.rgb * np.float32(SH_C0) + np.float32(0.5)
    return SplatCloud(cloud.positions, rgb, opacity, scales, cloud.quats_wxyz)


def stored(cloud: SplatCloud) -> SplatCloud:
    """Colours as harmonics, opacities as logits, scales as logarithms: the numbers that a file holds."""
    rgb = (cloud.rgb - np.float32(0.5)) / np.float32(SH_C0)
    clamped = np.clip(cloud.opacity, OPACITY_MARGIN, np.float32(1) - OPACITY_MARGIN)
    opacity, scales = nearest_log(clamped / (1 - clamped)), nearest_log(cloud.scales + SCALE_MARGIN)
    return SplatCloud(cloud.positions, rgb, opacity, scales, cloud.quats_wxyz)


def encode_records(header: list[str], record: np.dtype, columns: SplatCloud, **more: np.ndarray) -> bytes:
    """A binary file of these columns, and `more` by name."""
    text = "\n".join([*header, "end_header", ""]).encode("ascii")
    data = bytearray(len(text) + len(columns) * record.itemsize)
    data[: len(text)] = text
    records = np.frombuffer(data, record, offset=len(text))
    for name, values in zip(COLUMNS, columns.to_array().T, strict=True):  # the columns of the wire, in its order
        records[name] = values
    for name, values in more.items():
        records[name] = values
    return bytes(data)


def nearest_log(values: np.ndarray) -> np.ndarray:
    """The float32 nearest to the logarithm of each float32.

    The same on every machine; the float32 logarithms of numpy and PyTorch differ in the last bit from CPU to CPU.
    """
    return np.log(values.astype(np.float64)).astype(np.float32)


def _frame_of(header: Header) -> str:
    frames = [text.removeprefix(_FRAME_COMMENT) for text in header.comments if text.startswith(_FRAME_COMMENT)]
    known = [frame for frame in frames if frame in FRAMES]
    if known:
        return known[0]
    vertex = header.element("vertex")
    published = vertex is not None and tuple(vertex.fields) == (*COLUMNS, *RGB_COLUMNS)
    return OPENGL if published else THREEDGS


def _take(records: np.ndarray, *names: str) -> np.ndarray:
    return np.stack([records[name].astype(np.float32) for name in names], axis=1)
