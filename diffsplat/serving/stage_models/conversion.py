"""Converts tensors and errors between Triton and the stages; runs only inside Triton's Python backend."""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from diffsplat_client.contract import ERROR_CODES, TensorSpec
from diffsplat_client.error_text import StageError
from diffsplat_client.errors import InvalidRequestError, RequestCancelledError, RequestTimeoutError
from diffsplat_client.request_checks import short

from diffsplat.serving.drain import ServerDrainingError
from diffsplat.serving.engine.interface import EngineClosedError, early_end_state
from diffsplat.serving.errors import OverloadedError
from diffsplat.stages.envelope import MAX_CHARACTERS
from diffsplat.stages.errors import NotFiniteError

MAX_ID_CHARACTERS = 128

_log = logging.getLogger("diffsplat.serving")


def check_request_id(request_id: str) -> None:
    """Refuse an id that is too long for a log, or could forge a line of it; an empty one stands for no id."""
    if len(request_id) > MAX_ID_CHARACTERS or not (request_id.isascii() and request_id.isprintable()):
        raise InvalidRequestError(
            f"request id = {short(request_id)}, {len(request_id)} characters: must be at most {MAX_ID_CHARACTERS} "
            "printable ASCII characters"
        )


def read_array(request: Any, name: str) -> np.ndarray | None:
    """An input, None when it was not sent.

    Triton's Python backend has made an array of it before any code of ours runs. A shape whose size overflows, such as
    FRAME_POSES [2^62, 4] in 0 bytes, passes Triton's own check and ends or hangs the stage's process right there: all
    that helps is that the server's supervisor restarts it.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def read_arrays(request: Any, specs: Iterable[TensorSpec]) -> dict[str, np.ndarray]:
    """The inputs of `specs` that were sent, by name."""
    return {spec.name: array for spec in specs if (array := read_array(request, spec.name)) is not None}


def required_array(request: Any, name: str) -> np.ndarray:
    """An input; InvalidRequestError if it was not sent."""
    array = read_array(request, name)
    if array is None:
        raise InvalidRequestError(f"{name} is missing")
    return array


def required_text(request: Any, name: str) -> str:
    """A BYTES [1] input as text; InvalidRequestError if it is missing, too long or not UTF-8."""
    array = required_array(request, name)
    if array.size != 1:
        raise InvalidRequestError(f"{name} has shape {list(array.shape)}: must be [1]")
    data = bytes(array.reshape(-1)[0])
    if len(data) > MAX_CHARACTERS:
        raise InvalidRequestError(f"{name} has {len(data)} bytes: at most {MAX_CHARACTERS} are allowed")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{name} is not UTF-8 text") from None


def read_tensor(request: Any, name: str) -> Any:
    """An input as a torch tensor, None when it was not sent: a copy on the host, or the memory of the device itself.

    It comes from a device only where the model's configuration says FORCE_CPU_ONLY_INPUT_TENSORS = no.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    from torch.utils.dlpack import from_dlpack

    given = from_dlpack(tensor.to_dlpack())
    return given if given.is_cuda else given.clone()  # the host's memory goes back to the server


def to_torch(array: np.ndarray) -> Any:
    """A copy: the input's memory may be read-only and goes back to the server."""
    import torch

    return torch.from_numpy(array.copy())


def array_tensor(name: str, array: np.ndarray) -> Any:
    """An output tensor."""
    return pb_utils.Tensor(name, np.ascontiguousarray(array))


def torch_tensor(name: str, tensor: Any) -> Any:
    """An output tensor, which stays on its device. The host waits for it there: Triton reads on a stream of its own."""
    import torch
    from torch.utils.dlpack import to_dlpack

    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
    return pb_utils.Tensor.from_dlpack(name, to_dlpack(tensor.contiguous()))


def text_tensor(name: str, text: str) -> Any:
    """A BYTES [1] output tensor."""
    return bytes_tensor(name, [text.encode()])


def bytes_tensor(name: str, values: Iterable[bytes]) -> Any:
    """A BYTES [N] output tensor."""
    return pb_utils.Tensor(name, np.array(list(values), dtype=np.object_))


_ERROR_CODES: dict[type[Exception], str] = {
    InvalidRequestError: "INVALID_ARG",
    RequestCancelledError: "CANCELLED",
    RequestTimeoutError: "DEADLINE_EXCEEDED",
    OverloadedError: "OVERLOADED",
    EngineClosedError: "UNAVAILABLE",
    ServerDrainingError: "UNAVAILABLE",
}
# TritonError has no constant for some; the type in the message is what the client reads
_TRITON_CODES = {"DEADLINE_EXCEEDED": "CANCELLED", "OVERLOADED": "UNAVAILABLE"}


def describe_error(error: Exception, request_id: str, stage: str) -> tuple[str, str]:
    """Type (a key of contract.ERROR_CODES) and message for the client; the log gets what the client must not see."""
    for kind, code in _ERROR_CODES.items():
        if isinstance(error, kind):
            return code, str(error)
    _log.error("request %s failed in %s", request_id[:MAX_ID_CHARACTERS], stage, exc_info=error)
    if isinstance(error, NotFiniteError):
        return "INTERNAL", str(error)
    return "INTERNAL", f"{stage} failed; the server's log says why under this request's id"


def describe_early_end(error: Exception, request_id: str, stage: str, end_state: str | None = None) -> dict[str, str]:
    """End state, error type and message of a request that ended without a result, as in the contract.

    `end_state`: None is that of a request that had been started.
    """
    error_type, message = describe_error(error, request_id, stage)
    end_state = end_state or early_end_state(error, started=True)
    return {"end_state": end_state, "error_type": error_type, "message": message}


def to_triton_error(error: Exception, request_id: str, stage: str) -> Any:
    """An error response. Its message starts with the error's type, as the contract says."""
    name, message = describe_error(error, request_id, stage)
    assert name in ERROR_CODES
    text = StageError(name, message, getattr(error, "retry_after_s", None)).to_text()
    return pb_utils.TritonError(text, getattr(pb_utils.TritonError, _TRITON_CODES.get(name, name)))
