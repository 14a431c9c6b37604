"""Splat clouds as .splat files, the format of antimatter15/splat: records of 32 bytes and nothing else.

A record holds centre and scales as float32, colour and opacity as four bytes, and the quaternion (w, x, y, z) as four
bytes, 128 for 0. The axes are those of 3DGS tools unless asked otherwise; a file cannot say which it has.
"""

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.axes import THREEDGS, from_frame, to_frame
from diffsplat_client.formats.packing import check_packable, unit_bytes, unit_quats

RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat_wxyz", "u1", 4)])


def encode_splat(cloud: SplatCloud, frame: str = THREEDGS) -> bytes:
    """The bytes of a file with all splats of `cloud`, colours clipped to [0, 1]; ValueError for a number like NaN."""
    check_packable(cloud)
    cloud = to_frame(cloud, frame)
    records = np.empty(len(cloud), RECORD)
    records["position"], records["scale"] = cloud.positions, cloud.scales
    records["rgba"][:, :3], records["rgba"][:, 3] = unit_bytes(cloud.rgb), unit_bytes(cloud.opacity)
    quats = unit_quats(cloud.quats_wxyz) * np.float32(128) + np.float32(128)
    records["quat_wxyz"] = np.rint(np.clip(quats, 0, 255)).astype(np.uint8)
    return records.tobytes()


def decode_splat(data: bytes, frame: str = "") -> SplatCloud:
    """Inverse of `encode_splat`.

    Args:
        data: the whole file.
        frame: its axes, one of `axes.FRAMES`; "" for those of 3DGS tools.

    Raises:
        ValueError: the size is not that of whole records, or a number is not finite or a scale negative: so other
            files are told from .splat, which has no mark of its own.
    """
    if len(data) % RECORD.itemsize:
        raise ValueError(f"splat: {len(data)} bytes: must be a multiple of {RECORD.itemsize}, the size of a record")
    records = np.frombuffer(data, RECORD)
    for name, low in (("position", -np.inf), ("scale", 0)):
        values = records[name]
        if not (good := np.isfinite(values) & (values >= low)).all():
            row, column = (int(i) for i in np.argwhere(~good)[0])
            allowed = "finite" if low else "finite, 0 or more"
            raise ValueError(f"splat: record {row}: {name}[{column}] = {values[row, column]:g}: must be {allowed}")
    rgba = records["rgba"] / np.float32(255)
    quats = (records["quat_wxyz"].astype(np.float32) - 128) / 128
    cloud = SplatCloud(records["position"], rgba[:, :3], rgba[:, 3], records["scale"], unit_quats(quats))
    return from_frame(cloud, frame or THREEDGS)
