"""The published DiffSplat script's own .ply, byte for byte: the columns of `ply.py` and the colour as three bytes.

Its splats are those the network decoded: quaternions of any length, in our frame.
"""

import io

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.ply import COLUMNS, RGB_COLUMNS, encode_records, linear, read_columns, stored
from diffsplat_client.formats.ply_elements import read_header

RECORD = np.dtype([(name, "<f4") for name in COLUMNS] + [(name, "u1") for name in RGB_COLUMNS])


def encode_published(cloud: SplatCloud, compatible: bool = True) -> bytes:
    """The bytes of the script's file, logarithms to the last bit but one.

    Args:
        cloud: the splats as decoded.
        compatible: the script's option of this name; False writes opacities, scales and colours as they are.
    """
    with np.errstate(invalid="ignore"):  # NaN has no byte; it becomes 0
        colors = np.clip(cloud.rgb * np.float32(255), 0, 255).astype(np.uint8)  # truncated, as the script does
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}"]
    lines += [f"property float {name}" for name in COLUMNS]
    lines += [f"property uchar {name}" for name in RGB_COLUMNS]
    rgb = dict(zip(RGB_COLUMNS, colors.T, strict=True))
    return encode_records(lines, RECORD, stored(cloud) if compatible else cloud, **rgb)


def decode_published(data: bytes, compatible: bool = True) -> SplatCloud:
    """Inverse of `encode_published`; ValueError says what is wrong with the file."""
    file = io.BytesIO(data)
    columns = read_columns(file, read_header(file, "ply"), "ply")
    return linear(columns) if compatible else columns
