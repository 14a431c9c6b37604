"""Splat clouds as .spz files, Niantic's compressed format: 20 bytes per splat, then gzip (version 3) or zstd (4).

Attributes follow each other, each for all splats, without spherical harmonics where the degree is 0:

    positions   3 x 24 bits, fixed point
    alphas      8 bits of opacity
    colours     3 x 8 bits of the harmonic of degree 0, wide enough for colours from -0.4 to 1.4
    scales      3 x 8 bits of the logarithm, in steps of 1/16 from -10 on
    rotations   2 bits for the largest of (x, y, z, w), sign and 9 bits for each of the others

The axes are right, up, back: ours. https://github.com/nianticlabs/spz, which also describes versions 1 and 2; they are
read too. Version 4 needs the package zstandard, the extra `formats`.
"""

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.axes import OPENGL, from_frame, to_frame
from diffsplat_client.formats.packing import check_packable, join_largest, split_largest, unit_quats
from diffsplat_client.formats.ply import SH_C0
from diffsplat_client.formats.spz_container import Header, Sections, pack_gzip, pack_zstd, unpack

FRACTION_BITS = 12  # of a written position: steps of 1/4096, as every writer's
_LARGEST_FIXED = 2**23 - 1
COLOR_SCALE = 0.15
_MAGNITUDE = 2**9 - 1  # of a quaternion's component; 1 / sqrt(2) is the largest
_HALF = np.float32(np.sqrt(0.5))


def encode_spz(cloud: SplatCloud, frame: str = OPENGL, version: int = 3) -> bytes:
    """The bytes of a file with all splats of `cloud`.

    Args:
        cloud: the splats, in our frame.
        frame: axes of the file, one of `axes.FRAMES`.
        version: 3 or 4.

    Raises:
        ValueError: a number that is not finite, or a position that 24 bits cannot hold.
        ModuleNotFoundError: version 4 without zstandard; the message says how to install it.
    """
    check_packable(cloud)
    cloud = to_frame(cloud, frame)
    sections = Sections(
        positions=_fixed_point(cloud.positions),
        alphas=_rounded(cloud.opacity * 255),
        colors=_rounded((cloud.rgb - np.float32(0.5)) * np.float32(COLOR_SCALE * 255 / SH_C0) + np.float32(127.5)),
        scales=_log_scales(cloud.scales),
        rotations=_smallest_three(cloud.quats_wxyz),
    )
    pack = {3: pack_gzip, 4: pack_zstd}[version]
    return pack(Header(version, len(cloud), fraction_bits=FRACTION_BITS), sections)


def decode_spz(data: bytes, frame: str = "") -> SplatCloud:
    """The splats of a file of version 1 to 4; higher harmonics are dropped.

    Args:
        data: the whole file.
        frame: its axes, one of `axes.FRAMES`; "" for right, up, back.

    Raises:
        ValueError: naming what is wrong with the file.
        ModuleNotFoundError: version 4 without zstandard; the message says how to install it.
    """
    header, sections = unpack(data)
    with np.errstate(over="ignore", invalid="ignore"):  # version 1 may hold any float16
        positions = _positions(header, sections.positions)
    wide = sections.colors.astype(np.float32) * np.float32(1 / 255) - np.float32(0.5)
    cloud = SplatCloud(
        positions=positions,
        rgb=wide * np.float32(SH_C0 / COLOR_SCALE) + np.float32(0.5),
        opacity=sections.alphas[:, 0] / np.float32(255),
        scales=np.exp(np.arange(256) / 16 - 10).astype(np.float32)[sections.scales],
        quats_wxyz=_quaternions(sections.rotations),
    )
    return from_frame(cloud, frame or OPENGL)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _fixed_point(positions: np.ndarray) -> np.ndarray:
    """[N, 3] -> little-endian bytes [N, 9]."""
    fixed = np.rint(positions * np.float32(2**FRACTION_BITS))
    if (outside := np.abs(fixed) > _LARGEST_FIXED).any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        limit = _LARGEST_FIXED / 2**FRACTION_BITS
        raise ValueError(f"positions[{row}, {column}] = {positions[row, column]:g}: must be in -{limit:g} .. {limit:g}")
    words = np.ascontiguousarray(fixed.astype("<i4"))
    return words.view(np.uint8).reshape(-1, 3, 4)[:, :, :3].reshape(-1, 9)


def _positions(header: Header, stored: np.ndarray) -> np.ndarray:
    if header.version == 1:
        return np.ascontiguousarray(stored).view("<f2").astype(np.float32)
    words = np.zeros((len(stored), 3, 4), np.uint8)
    words[:, :, 1:] = stored.reshape(-1, 3, 3)  # in the high bytes, so that the sign is that of the word
    return (words.view("<i4")[:, :, 0] >> 8) * np.float32(2.0**-header.fraction_bits)


def _log_scales(scales: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # a scale of 0: its logarithm is clipped
        return _rounded((np.log(scales) + np.float32(10)) * np.float32(16))


def _smallest_three(quats_wxyz: np.ndarray) -> np.ndarray:
    """[N, 4] -> little-endian bytes [N, 4]; the order is x, y, z, w."""
    largest, others = split_largest(unit_quats(quats_wxyz)[:, [1, 2, 3, 0]])
    magnitudes = np.minimum(np.rint(np.abs(others) * (_MAGNITUDE / _HALF)), _MAGNITUDE).astype(np.uint32)
    fields = magnitudes | (others < 0).astype(np.uint32) << np.uint32(9)
    words = largest.astype(np.uint32) << np.uint32(30)
    for i, shift in enumerate((20, 10, 0)):
        words |= fields[:, i] << np.uint32(shift)
    return words.astype("<u4")[:, None].view(np.uint8)


def _quaternions(stored: np.ndarray) -> np.ndarray:
    """Bytes [N, 4] of version 3 and later, or [N, 3] of x, y, z: unit quaternions [N, 4], w first."""
    if stored.shape[1] == 3:
        xyz = stored / np.float32(127.5) - np.float32(1)
        w = np.sqrt(np.clip(1 - np.einsum("ij,ij->i", xyz, xyz), 0, None))
        return unit_quats(np.concatenate((w[:, None], xyz), axis=1))
    words = np.ascontiguousarray(stored).view("<u4")[:, 0].astype(np.uint32)
    fields = np.stack([words >> np.uint32(shift) & np.uint32(1023) for shift in (20, 10, 0)], axis=1)
    others = (fields & np.uint32(_MAGNITUDE)).astype(np.float32) * (_HALF / np.float32(_MAGNITUDE))
    others = np.where(fields > _MAGNITUDE, -others, others)
    return unit_quats(join_largest((words >> np.uint32(30)).astype(np.int64), others))[:, [3, 0, 1, 2]]
