"""Splat clouds as .usdz files: a prim of OpenUSD's type ParticleField3DGaussianSplat, y up, a unit is a metre.

The archive is a zip of stored members that begin at multiples of 64 bytes, and holds one crate. Its arrays are float32:
centre, quaternion, scales, opacity, and the colour as harmonic of degree 0. https://openusd.org/release/spec_usdz.html,
https://openusd.org/release/user_guides/schemas/usdVol/ParticleField3DGaussianSplat.html (OpenUSD 26.03 and later).

Writing needs numpy alone. Reading is left to OpenUSD, the extra `usd`: files may be text, crates of any version, and
scenes composed of several members.
"""

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.extras import require
from diffsplat_client.formats.axes import OPENGL, from_frame, to_frame
from diffsplat_client.formats.packing import MAX_SPLATS, check_packable, unit_quats
from diffsplat_client.formats.placing import placed
from diffsplat_client.formats.ply import SH_C0
from diffsplat_client.formats.usd_crate import Attribute, encode_crate

if TYPE_CHECKING:  # imported where it is used, so that importing the client stays quick
    import zipfile

READER_MODULE = "pxr.Usd"
PRIM_TYPE = "ParticleField3DGaussianSplat"
POSITIONS, ORIENTATIONS, SCALES, OPACITIES = "positions", "orientations", "scales", "opacities"
HARMONICS, DEGREE = "radiance:sphericalHarmonicsCoefficients", "radiance:sphericalHarmonicsDegree"
_ALIGNMENT = 64  # of what a member holds
_PADDING_ID = 0x1986  # of the extra field that moves it there
_LOCAL_HEADER = 30  # bytes of a member's header without its name and extra field
_DEVIATIONS = 3.0  # from a splat's centre that an object's extent reaches


def encode_usdz(cloud: SplatCloud, frame: str = OPENGL) -> bytes:
    """The bytes of a file with all splats of `cloud`, opacities clipped to [0, 1]; ValueError for a number like NaN."""
    check_packable(cloud)
    cloud = to_frame(cloud, frame)
    attributes = [
        Attribute("extent", "float3[]", _extent(cloud)),
        Attribute(POSITIONS, "point3f[]", cloud.positions.astype("<f4")),
        Attribute(ORIENTATIONS, "quatf[]", unit_quats(cloud.quats_wxyz)[:, [1, 2, 3, 0]].astype("<f4")),
        Attribute(SCALES, "float3[]", cloud.scales.astype("<f4")),
        Attribute(OPACITIES, "float[]", np.clip(cloud.opacity, 0, 1).astype("<f4")),
        Attribute(DEGREE, "int", 0),
        Attribute(HARMONICS, "float3[]", ((cloud.rgb - np.float32(0.5)) / np.float32(SH_C0)).astype("<f4")),
    ]
    return _archive("splats.usdc", encode_crate({"upAxis": "Y", "metersPerUnit": 1.0}, "splats", PRIM_TYPE, attributes))


def _extent(cloud: SplatCloud) -> np.ndarray:
    """The corners [2, 3] of a box around all that is seen."""
    if not len(cloud):
        return np.zeros((2, 3), "<f4")
    reach = np.float32(_DEVIATIONS) * cloud.scales.max(axis=1, keepdims=True)
    return np.stack(((cloud.positions - reach).min(axis=0), (cloud.positions + reach).max(axis=0))).astype("<f4")


def _archive(name: str, content: bytes) -> bytes:
    import zipfile

    member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    padding = -(_LOCAL_HEADER + len(name) + 4) % _ALIGNMENT
    member.extra = struct.pack("<HH", _PADDING_ID, padding) + bytes(padding)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(member, content)
    return file.getvalue()


def decode_usdz(data: bytes, frame: str = "") -> SplatCloud:
    """The splats of all prims of the type that the root layer shows, in world axes; higher harmonics are dropped.

    A stage with z up is turned, and one that states another unit than metres is scaled.

    Args:
        data: the whole file.
        frame: its axes, one of `axes.FRAMES`; "" for those that it states.

    Raises:
        ValueError: naming what is wrong with the file, also that it holds no splats.
        ModuleNotFoundError: OpenUSD is not installed; the message says how to install it.
    """
    import tempfile

    require(READER_MODULE, "usd", "reading .usdz")
    with _opened(data) as archive, tempfile.TemporaryDirectory() as folder:
        cloud = _read_stage(_extracted(archive, Path(folder)))
    return from_frame(cloud, frame or OPENGL)


def _opened(data: bytes) -> "zipfile.ZipFile":
    """The archive; its first member is the root layer, and none is larger than the file."""
    import zipfile

    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"usdz: not a complete zip archive: {error}") from None
    first = next(iter(archive.namelist()), "none")
    if not first.endswith((".usd", ".usda", ".usdc")):
        raise ValueError(f"usdz: the first member is {first!r}: must be .usd, .usda or .usdc")
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
            raise ValueError(f"usdz: {member.filename!r} is compressed or larger than the file: must be stored")
    return archive


def _extracted(archive: "zipfile.ZipFile", folder: Path) -> Path:
    """Write the members, each held against its checksum, and return the root layer."""
    import zipfile

    try:
        paths = [archive.extract(member, folder) for member in archive.infolist()]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"usdz: not a complete zip archive: {error}") from None
    return Path(paths[0])


def _read_stage(path: Path) -> SplatCloud:
    from pxr import Tf, Usd, UsdGeom

    try:
        stage = Usd.Stage.Open(str(path))
    except Tf.ErrorException as error:
        raise ValueError(f"usdz: OpenUSD cannot open {path.name}: {str(error).strip().splitlines()[-1]}") from None
    unit = UsdGeom.GetStageMetersPerUnit(stage) if UsdGeom.StageHasAuthoredMetersPerUnit(stage) else 1.0
    to_ours = np.diag([unit, unit, unit, 1.0])
    if UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z:
        to_ours[:3, :3] = to_ours[:3, :3] @ [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    places = UsdGeom.XformCache()
    clouds, total = [], 0
    for prim in stage.Traverse():
        if prim.GetTypeName() == PRIM_TYPE:
            cloud = _read_prim(prim)
            total += len(cloud)
            if total > MAX_SPLATS:
                raise ValueError(f"usdz: {total} splats: must be {MAX_SPLATS} or fewer")
            to_world = np.array(places.GetLocalToWorldTransform(prim)).T  # USD multiplies rows
            clouds.append(placed(cloud, to_ours @ to_world, f"usdz: {prim.GetPath()}"))
    if not clouds:
        raise ValueError(f"usdz: no prim of the stage is a {PRIM_TYPE}")
    return SplatCloud.from_array(np.concatenate([cloud.to_array() for cloud in clouds]))


def _read_prim(prim: Any) -> SplatCloud:
    degree = prim.GetAttribute(DEGREE).Get()
    if not 0 <= degree <= 4:
        raise ValueError(f"usdz: {prim.GetPath()}.{DEGREE} = {degree}: must be in 0 .. 4")
    positions = _array(prim, POSITIONS, 3)
    count = len(positions)
    harmonics = _array(prim, HARMONICS, 3, count * (degree + 1) ** 2)
    arrays = [_array(prim, name, width, count) for name, width in ((OPACITIES, 1), (SCALES, 3), (ORIENTATIONS, 4))]
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file may hold any float
        rgb = harmonics[:: (degree + 1) ** 2] * np.float32(SH_C0) + np.float32(0.5)
        return SplatCloud(positions, rgb, arrays[0][:, 0], arrays[1], unit_quats(arrays[2])[:, [3, 0, 1, 2]])


def _array(prim: Any, name: str, width: int, count: int | None = None) -> np.ndarray:
    """An attribute as float32 [count, width], in whichever of its two precisions the file has it."""
    for attribute in (prim.GetAttribute(name), prim.GetAttribute(f"{name}h")):
        if attribute and (value := attribute.Get()) is not None:
            array = np.array(value, np.float32).reshape(-1, width)
            if count not in (None, len(array)):
                raise ValueError(f"usdz: {attribute.GetPath()} has {len(array)} values: must have {count}")
            return array
    raise ValueError(f"usdz: {prim.GetPath()} has no {name}")
