"""Triton's tensors and errors from and to ours; runs only inside Triton's Python backend."""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from diffsplat_client.contract import ERROR_CODES, TensorSpec
from diffsplat_client.errors import InvalidRequestError, RequestCancelledError

from diffsplat.serving.engine import QueueFullError

_log = logging.getLogger("diffsplat.serving")


def read_array(request: Any, name: str) -> np.ndarray | None:
    """An input, None when it was not sent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def read_arrays(request: Any, specs: Iterable[TensorSpec]) -> dict[str, np.ndarray]:
    """Those of these inputs that were sent, by name."""
    return {spec.name: array for spec in specs if (array := read_array(request, spec.name)) is not None}


def required_array(request: Any, name: str) -> np.ndarray:
    """An input that must be there."""
    array = read_array(request, name)
    if array is None:
        raise InvalidRequestError(f"{name} is missing")
    return array


def required_text(request: Any, name: str) -> str:
    """A BYTES [1] input that must be there and be UTF-8."""
    array = required_array(request, name)
    if array.size != 1:
        raise InvalidRequestError(f"{name} has shape {list(array.shape)}: must be [1]")
    try:
        return bytes(array.reshape(-1)[0]).decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{name} is not UTF-8 text") from None


def to_torch(array: np.ndarray) -> Any:
    """A tensor of its own memory: the input's may be read-only and goes back to the server."""
    import torch

    return torch.from_numpy(array.copy())


def array_tensor(name: str, array: np.ndarray) -> Any:
    """An output."""
    return pb_utils.Tensor(name, np.ascontiguousarray(array))


def text_tensor(name: str, text: str) -> Any:
    """A BYTES [1] output."""
    return pb_utils.Tensor(name, np.array([text.encode()], dtype=np.object_))


_ERROR_CODES: dict[type[Exception], str] = {
    InvalidRequestError: "INVALID_ARG",
    RequestCancelledError: "CANCELLED",
    QueueFullError: "UNAVAILABLE",
}


def to_triton_error(error: Exception, request_id: str, stage: str) -> Any:
    """What the client is told; what it is not told goes to the log. The message starts with its code (contract)."""
    name, text = "INTERNAL", f"{stage} failed; the server's log says why under this request's id"
    for kind, code in _ERROR_CODES.items():
        if isinstance(error, kind):
            name, text = code, str(error)
            break
    else:
        _log.error("request %s failed in %s", request_id, stage, exc_info=error)
    assert name in ERROR_CODES
    return pb_utils.TritonError(f"{name}: {text}", getattr(pb_utils.TritonError, name))
