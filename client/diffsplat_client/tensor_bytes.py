"""Tensors as the bytes of the KServe protocol, and back."""

from collections.abc import Iterable
from typing import Any

import numpy as np

DATATYPES: dict[np.dtype[Any], str] = {
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
    np.dtype(np.float32): "FP32",
    np.dtype(np.object_): "BYTES",
}


def to_bytes(array: np.ndarray) -> bytes:
    """Content of a tensor; strings with their length in front."""
    if array.dtype != np.object_:
        return array.tobytes()
    return b"".join(len(value).to_bytes(4, "little") + value for value in array.reshape(-1))


def from_bytes(datatype: str, shape: Iterable[int], content: bytes) -> np.ndarray:
    """One tensor; ValueError when its bytes do not fill its shape."""
    dims = tuple(shape)
    try:
        if datatype != "BYTES":
            dtype = next(dtype for dtype, name in DATATYPES.items() if name == datatype)
            return np.frombuffer(content, dtype).reshape(dims)
        values, start = [], 0
        while start < len(content):
            end = start + 4 + int.from_bytes(content[start : start + 4], "little")
            values.append(content[start + 4 : end])
            start = end
        array = np.empty(len(values), np.object_)
        array[:] = values
        return array.reshape(dims)
    except (ValueError, StopIteration):
        raise ValueError(f"a {datatype} tensor {list(dims)} came in {len(content)} bytes") from None
