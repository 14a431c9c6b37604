"""Messages of Triton's gRPC protocol, made and read without sending anything. Needs tritonclient."""

import os
from collections.abc import Iterable
from typing import Any

from tritonclient.grpc import service_pb2

from diffsplat_client.contract import EDGE_HEADER, ERROR_CODES
from diffsplat_client.error_text import StageError
from diffsplat_client.tensor_bytes import DATATYPES, from_bytes, to_bytes
from diffsplat_client.transport import FORKED, Parameters, Tensors, TransportError

DRAIN_TIMEOUT_S = 1.0  # how long a refused request may take to end
_REFUSALS = ("unexpected shape for input", "unexpected inference input", "data-type is")  # Triton's words


def infer_request(
    model: str, tensors: Tensors, request_id: str, version: str = "", parameters: Parameters | None = None
) -> Any:
    """A ModelInferRequest."""
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, value in (parameters or {}).items():
        if isinstance(value, bool):
            request.parameters[name].bool_param = value
        else:
            request.parameters[name].string_param = value
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
        request.raw_input_contents.append(to_bytes(array))
    return request


def tensors_of(response: Any) -> Tensors:
    """The tensors of a ModelStreamInferResponse; TransportError if it is an error message."""
    if response.error_message:
        raise _request_error(response.error_message.strip())
    infer = response.infer_response
    if len(infer.outputs) != len(infer.raw_output_contents):
        raise TransportError("INTERNAL", "a response has outputs without their bytes")
    outputs = zip(infer.outputs, infer.raw_output_contents, strict=True)
    try:
        return {output.name: from_bytes(output.datatype, output.shape, content) for output, content in outputs}
    except ValueError as error:
        raise TransportError("INTERNAL", str(error)) from None


def must_be_drained(error: TransportError) -> bool:
    """Whether the stream of this error message ends by itself, and has to be read up to there.

    So it is with requests that were refused before anything ran: Triton never lets go of one whose stream is cancelled
    between the error message and its end.
    """
    return error.code == "INVALID_ARGUMENT"


def parameters_of(reply: Any) -> dict[str, str]:
    """The parameters in a ModelConfigResponse."""
    return {name: value.string_value for name, value in reply.config.parameters.items()}


def is_edge(metadata: Iterable[tuple[str, Any]]) -> bool:
    """Whether the initial metadata of the answer to ServerLive is an edge's."""
    return any(name == EDGE_HEADER for name, _ in metadata)


def status_error(error: Any) -> TransportError:
    """For a call that ended with a gRPC status."""
    return TransportError(error.code().name, error.details() or "")


def closed_error() -> TransportError:
    """For a call on a connection that has been closed on this side."""
    return TransportError("CANCELLED", "the connection was closed")


def check_process(process: int) -> None:
    """A forked child has its parent's connection without the threads that serve it: every call would hang."""
    if os.getpid() != process:
        raise TransportError(
            FORKED,
            f"process {os.getpid()} was forked from {process}, which made the connection: make a Client in the process "
            "that uses it",
        )


def _request_error(message: str) -> TransportError:
    """A request that failed: by a stage, whose code stands in the message, or before any stage saw it."""
    if (said := StageError.from_text(message)) is not None:
        kind, text, retry_after_s = said
        return TransportError(ERROR_CODES[kind], text, True, error_type=kind, retry_after_s=retry_after_s)
    refused = any(words in message for words in _REFUSALS)
    return TransportError("INVALID_ARGUMENT" if refused else "UNKNOWN", message)
