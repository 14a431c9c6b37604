"""Splat clouds as .sog files, PlayCanvas' format, version 2: a zip of `meta.json` and lossless WebP images.

A pixel of every image belongs to one splat, in Morton order of the positions:

    means_l, means_u    low and high byte of 16-bit positions on a logarithmic scale, within the cloud's box
    quats               three smaller components (r, g, b) and which is left out (alpha)
    scales              numbers of a table of 256 logarithms
    sh0                 numbers of a table of 256 colours (r, g, b), and the opacity (alpha)

The axes are those of 3DGS tools unless asked otherwise; a file cannot say which it has.
https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog. Needs Pillow, the extra `formats`.
"""

import io
import json
from typing import Any

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.extras import require
from diffsplat_client.formats.axes import THREEDGS, from_frame, to_frame
from diffsplat_client.formats.packing import (
    check_packable,
    join_largest,
    split_largest,
    unit_bytes,
    unit_quats,
)
from diffsplat_client.formats.ply import SCALE_MARGIN, SH_C0
from diffsplat_client.formats.sog_archive import read_archive

_LEVELS = 65535
_FIRST_QUAT = 252  # alpha of a quaternion without its w; 253 .. 255 for x, y, z
_SQRT2 = np.float32(np.sqrt(2))
# the fastest lossless way, which keeps the colours of transparent pixels too
_WEBP: dict[str, Any] = {"format": "WEBP", "lossless": True, "quality": 0, "method": 0, "exact": True}


def encode_sog(cloud: SplatCloud, frame: str = THREEDGS) -> bytes:
    """The bytes of a file with all splats of `cloud`, opacities clipped to [0, 1].

    Raises:
        ValueError: a number is not finite.
        ModuleNotFoundError: Pillow is not installed; the message says how to install it.
    """
    require("PIL.Image", "formats", ".sog")
    check_packable(cloud)
    cloud = to_frame(cloud, frame)
    if len(cloud):
        cloud = cloud[_morton_order(cloud.positions)]
    means = np.sign(cloud.positions) * np.log1p(np.abs(cloud.positions))
    low, high = (means.min(axis=0), means.max(axis=0)) if len(cloud) else (np.zeros(3), np.zeros(3))
    steps = np.rint((means - low) * (_LEVELS / np.where(high > low, high - low, 1))).astype(np.uint16)
    largest, others = split_largest(unit_quats(cloud.quats_wxyz))
    scale_table, scales = _tabulated(np.log(cloud.scales + SCALE_MARGIN))
    color_table, colors = _tabulated((cloud.rgb - np.float32(0.5)) / np.float32(SH_C0))
    opaque = np.full(len(cloud), 255, np.uint8)
    images = {
        "means_l": (steps & np.uint16(255), opaque),
        "means_u": (steps >> np.uint16(8), opaque),
        "scales": (scales, opaque),
        "quats": (unit_bytes(others * (_SQRT2 / 2) + np.float32(0.5)), largest + _FIRST_QUAT),
        "sh0": (colors, unit_bytes(cloud.opacity)),
    }
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "diffsplat"},
        "count": len(cloud),
        "means": {"mins": low.tolist(), "maxs": high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scale_table, "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": color_table, "files": ["sh0.webp"]},
    }
    return _archive(meta, images, len(cloud))


def _archive(meta: dict[str, Any], images: dict[str, tuple[np.ndarray, np.ndarray]], count: int) -> bytes:
    import zipfile  # here, so that importing the client stays quick
    from concurrent.futures import ThreadPoolExecutor

    # a multiple of four pixels each way, as other writers have it
    width = max(4, 4 * int(np.ceil(np.sqrt(count) / 4)))
    height = max(4, 4 * int(np.ceil(count / width / 4)))

    def encoded(image: tuple[np.ndarray, np.ndarray]) -> bytes:
        from PIL import Image

        pixels = np.zeros((height * width, 4), np.uint8)
        pixels[:count, :3], pixels[:count, 3] = image
        file = io.BytesIO()
        Image.fromarray(pixels.reshape(height, width, 4)).save(file, **_WEBP)
        return file.getvalue()

    with ThreadPoolExecutor() as pool:
        files = list(pool.map(encoded, images.values()))
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:  # images are compressed already
        # names without a date: the same splats give the same bytes
        archive.writestr(zipfile.ZipInfo("meta.json"), json.dumps(meta))
        for name, file in zip(images, files, strict=True):
            archive.writestr(zipfile.ZipInfo(f"{name}.webp"), file)
    return data.getvalue()


def decode_sog(data: bytes, frame: str = "") -> SplatCloud:
    """The splats of a file of version 2; higher harmonics are dropped.

    Args:
        data: the whole file.
        frame: its axes, one of `axes.FRAMES`; "" for those of 3DGS tools.

    Raises:
        ValueError: naming what is wrong with the file.
        ModuleNotFoundError: Pillow is not installed; the message says how to install it.
    """
    meta, images = read_archive(data)
    low, high = np.array(meta.mins), np.array(meta.maxs)
    steps = images["means_l"][:, :3] + images["means_u"][:, :3].astype(np.uint16) * np.uint16(256)
    means = low + steps * ((high - low) / _LEVELS)
    kinds = images["quats"][:, 3].astype(np.int64) - _FIRST_QUAT
    if (kinds < 0).any():
        worst = int(kinds.min()) + _FIRST_QUAT
        raise ValueError(f"sog: quats: alpha = {worst}: must be in {_FIRST_QUAT} .. 255")
    others = (images["quats"][:, :3] / np.float32(255) - np.float32(0.5)) * _SQRT2
    with np.errstate(over="ignore"):  # a damaged file may promise any range
        cloud = SplatCloud(
            positions=np.sign(means) * np.expm1(np.abs(means)),
            rgb=np.array(meta.colors, np.float32)[images["sh0"][:, :3]] * np.float32(SH_C0) + np.float32(0.5),
            opacity=images["sh0"][:, 3] / np.float32(255),
            scales=np.exp(np.array(meta.log_scales))[images["scales"][:, :3]],
            quats_wxyz=unit_quats(join_largest(kinds, others)),
        )
    return from_frame(cloud, frame or THREEDGS)


def _tabulated(values: np.ndarray) -> tuple[list[float], np.ndarray]:
    """A table of 256 evenly spaced numbers over the range of [N, 3] values, and the nearest one's place [N, 3]."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    table = np.linspace(low, high, 256, dtype=np.float32)
    places = np.rint((values - np.float32(low)) * np.float32(255 / (high - low) if high > low else 0))
    return table.tolist(), places.astype(np.uint8)


def _morton_order(positions: np.ndarray) -> np.ndarray:
    """Splats that are near each other stand near each other: bits of x, y and z take turns. Makes files smaller."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    cells = ((positions - low) * (1023 / np.where(high > low, high - low, 1))).astype(np.uint32)
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        cells = (cells | cells << np.uint32(shift)) & np.uint32(mask)
    code = cells[:, 0] | cells[:, 1] << np.uint32(1) | cells[:, 2] << np.uint32(2)
    return np.argsort(code, kind="stable")
