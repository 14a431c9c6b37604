"""SuperSplat's compressed .ply: 16 bytes per splat, quantised within the box of its chunk of 256 splats.

position and log scale  11, 10 and 11 bits of the range of the chunk
rotation                2 bits for the largest of (w, x, y, z), 10 bits for each of the others
colour and opacity      8 bits each; colours of the range of the chunk, where it has one
"""

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.packing import join_largest
from diffsplat_client.formats.ply_elements import Header

CHUNK = 256
_VECTOR_BITS = (11, 10, 11)
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_POSITION, _SCALE, _COLOR = ("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b")
_RANGES = tuple(f"{side}_{name}" for side in ("min", "max") for name in (*_POSITION, *_SCALE))


def is_compressed(header: Header) -> bool:
    """Whether the splats are packed, in chunks."""
    vertex = header.element("vertex")
    return header.element("chunk") is not None and vertex is not None and "packed_position" in vertex.fields


def decode_compressed(elements: dict[str, np.ndarray], path: str) -> SplatCloud:
    """The splats, linear, in the frame of the file.

    Args:
        elements: `chunk` and `vertex`, as `read_elements` gives them.
        path: for messages.

    Raises:
        ValueError: a property is missing, or there are too few chunks.
    """
    chunks, splats = elements["chunk"], elements["vertex"]
    for names, records in ((_RANGES, chunks), (_PACKED, splats)):
        for name in names:
            if name not in (records.dtype.names or ()):
                raise ValueError(f"{path}: SuperSplat's compressed form without the property {name!r}")
    if len(chunks) * CHUNK < len(splats):
        raise ValueError(f"{path}: {len(chunks)} chunks for {len(splats)} splats: must be one for every {CHUNK}")
    chunk = np.arange(len(splats)) // CHUNK
    color = _unpack(splats["packed_color"], (8, 8, 8, 8))
    has_range = "min_r" in (chunks.dtype.names or ())
    log_scales = _scaled(_unpack(splats["packed_scale"], _VECTOR_BITS), chunks, chunk, _SCALE)
    return SplatCloud(
        positions=_scaled(_unpack(splats["packed_position"], _VECTOR_BITS), chunks, chunk, _POSITION),
        rgb=_scaled(color[:, :3], chunks, chunk, _COLOR) if has_range else color[:, :3],
        opacity=color[:, 3],
        scales=np.exp(log_scales),
        quats_wxyz=_quaternions(splats["packed_rotation"]),
    )


def _unpack(words: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """Fields of 32-bit words, the first in the highest bits: [N, fields] in [0, 1]."""
    columns, shift = [], 32
    for width in bits:
        shift -= width
        columns.append(((words.astype(np.uint32) >> np.uint32(shift)) & np.uint32(2**width - 1)) / (2**width - 1))
    return np.stack(columns, axis=1)


def _scaled(unit: np.ndarray, chunks: np.ndarray, chunk: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    low, high = (np.stack([chunks[f"{side}_{name}"] for name in names], axis=1)[chunk] for side in ("min", "max"))
    return low + unit * (high.astype(np.float64) - low)


def _quaternions(words: np.ndarray) -> np.ndarray:
    """Unit quaternions [N, 4]."""
    largest = (words.astype(np.uint32) >> np.uint32(30)).astype(np.int64)
    return join_largest(largest, (_unpack(words, (2, 10, 10, 10))[:, 1:] - 0.5) * np.sqrt(2))
