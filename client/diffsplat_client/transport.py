"""The seam between the client and the wire: what a transport must do, and the one that speaks gRPC to Triton.

The gRPC transport reads the response stream itself instead of handing Triton's client a callback: nothing that goes
wrong while a response is handled can get lost in another thread, one channel carries any number of streams, and every
call has a deadline and a true status code.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from diffsplat_client.connection import Connection
from diffsplat_client.contract import ERROR_CODES
from diffsplat_client.error_text import StageError
from diffsplat_client.tensor_bytes import DATATYPES, from_bytes, to_bytes

Tensors = dict[str, np.ndarray]
Parameters = Mapping[str, str | bool]  # of a request, beside its tensors


class TransportError(Exception):
    """A call failed: gRPC's status name (`INVALID_ARGUMENT`, `UNAVAILABLE`, ...) and the server's message."""

    def __init__(
        self,
        code: str,
        message: str,
        by_stage: bool = False,
        *,
        error_type: str | None = None,
        retry_after_s: float | None = None,
        end_state: str | None = None,
    ) -> None:
        """`by_stage`: a stage said so, not Triton or the connection; the rest is what it said, see DiffSplatError."""
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.by_stage = by_stage
        self.error_type = error_type
        self.retry_after_s = retry_after_s
        self.end_state = end_state


class ResponseStream(Protocol):
    """The responses of one inference, in order."""

    def __iter__(self) -> Iterator[Tensors]:
        """Is its own iterator."""
        ...

    def __next__(self) -> Tensors:
        """The next response; TransportError when the request failed."""
        ...

    def cancel(self) -> None:
        """End the stream at once, from any thread; a reader gets TransportError `CANCELLED`."""
        ...


class Transport(Protocol):
    """All that the client asks of a server; every method raises TransportError."""

    def server_ready(self, timeout_s: float) -> bool:
        """Whether every model is loaded and the server takes requests."""
        ...

    def versions(self, model: str, timeout_s: float) -> list[str]:
        """The loaded versions of a model."""
        ...

    def parameters(self, model: str, timeout_s: float) -> dict[str, str]:
        """The parameters of a model's configuration."""
        ...

    def stream(
        self,
        model: str,
        tensors: Tensors,
        request_id: str,
        timeout_s: float,
        version: str = "",
        parameters: Parameters | None = None,
    ) -> ResponseStream:
        """Send one inference, to the newest version unless told otherwise; its responses may be any number."""
        ...

    def keeps_requests(self, timeout_s: float) -> bool:
        """Whether an edge is in front of the server, for which ids last."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


FORKED = "FORKED"  # a code of ours, beside gRPC's
DRAIN_TIMEOUT_S = 1.0  # how long a failed stream may take to end
_REFUSALS = ("unexpected shape for input", "unexpected inference input", "data-type is")  # Triton's words


class GrpcTransport:
    """Triton's gRPC protocol, to HOST:PORT or as a Connection says."""

    def __init__(self, connection: Connection | str) -> None:
        import grpc
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        if isinstance(connection, str):
            connection = Connection(connection)
        self._grpc, self._messages = grpc, service_pb2
        self._process = os.getpid()
        self._metadata = connection.metadata
        credentials, options = connection.credentials(grpc), connection.channel_options()
        if credentials is None:
            self._channel = grpc.insecure_channel(connection.url, options)
        else:
            self._channel = grpc.secure_channel(connection.url, credentials, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def server_ready(self, timeout_s: float) -> bool:
        return bool(self._call(self._stub.ServerReady, self._messages.ServerReadyRequest(), timeout_s).ready)

    def versions(self, model: str, timeout_s: float) -> list[str]:
        request = self._messages.ModelMetadataRequest(name=model)
        return list(self._call(self._stub.ModelMetadata, request, timeout_s).versions)

    def parameters(self, model: str, timeout_s: float) -> dict[str, str]:
        reply = self._call(self._stub.ModelConfig, self._messages.ModelConfigRequest(name=model), timeout_s)
        return {name: value.string_value for name, value in reply.config.parameters.items()}

    def keeps_requests(self, timeout_s: float) -> bool:
        """An edge has no methods to manage models; Triton has them, perhaps for its keeper alone."""
        try:
            self._call(self._stub.RepositoryIndex, self._messages.RepositoryIndexRequest(), timeout_s)
        except TransportError as error:
            if error.code != "UNIMPLEMENTED" and "protocol is restricted" not in error.message:
                raise
            return error.code == "UNIMPLEMENTED"
        return False

    def stream(
        self,
        model: str,
        tensors: Tensors,
        request_id: str,
        timeout_s: float,
        version: str = "",
        parameters: Parameters | None = None,
    ) -> "GrpcStream":
        request = self._messages.ModelInferRequest(model_name=model, model_version=version, id=request_id)
        for name, value in (parameters or {}).items():
            if isinstance(value, bool):
                request.parameters[name].bool_param = value
            else:
                request.parameters[name].string_param = value
        for name, array in tensors.items():
            request.inputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
            request.raw_input_contents.append(to_bytes(array))
        # one request and no more: the server closes the stream after the last response
        return GrpcStream(self._call(self._stub.ModelStreamInfer, iter((request,)), timeout_s), self._grpc)

    def close(self) -> None:
        if os.getpid() == self._process:
            self._channel.close()

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        _check_process(self._process)
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except self._grpc.RpcError as error:
            raise _transport_error(error) from None
        except ValueError:  # all that grpc says when another thread has closed the channel
            raise TransportError("CANCELLED", "the connection was closed") from None


class GrpcStream:
    """The responses of one `ModelStreamInfer` call."""

    def __init__(self, call: Any, grpc: Any) -> None:
        self._call = call
        self._grpc = grpc
        self._process = os.getpid()
        _CALLS.add(self)

    def __iter__(self) -> Iterator[Tensors]:
        """Is its own iterator."""
        return self

    def __next__(self) -> Tensors:
        """The next response as arrays."""
        _check_process(self._process)
        try:
            response = next(self._call)
        except self._grpc.RpcError as error:
            raise _transport_error(error) from None
        if response.error_message:
            failure = _request_error(response.error_message.strip())
            if failure.code == "INVALID_ARGUMENT":  # refused before anything ran: the stream ends by itself
                self._read_to_the_end()
            raise failure
        infer = response.infer_response
        if len(infer.outputs) != len(infer.raw_output_contents):
            raise TransportError("INTERNAL", "a response has outputs without their bytes")
        outputs = zip(infer.outputs, infer.raw_output_contents, strict=True)
        try:
            return {output.name: from_bytes(output.datatype, output.shape, content) for output, content in outputs}
        except ValueError as error:
            raise TransportError("INTERNAL", str(error)) from None

    def _read_to_the_end(self) -> None:
        """Triton never lets go of a request whose stream is cancelled between an error message and its end."""
        limit = threading.Timer(DRAIN_TIMEOUT_S, self._call.cancel)
        limit.start()
        try:
            for _ in self._call:
                pass
        except self._grpc.RpcError:
            pass  # it ended with a status; the error message has said more
        finally:
            limit.cancel()

    def cancel(self) -> None:
        """End the call; the server sees its client gone. In a forked child nothing: the call is its parent's."""
        if os.getpid() == self._process:
            self._call.cancel()


_CALLS: "weakref.WeakSet[GrpcStream]" = weakref.WeakSet()  # of this process


def _leave_calls_to_the_parent() -> None:
    """In a forked child, keep grpc's objects for ever: their finaliser takes a lock that a thread of the parent may
    have held at the fork, and would wait for a thread that the child does not have.
    """
    for stream in _CALLS:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream._call))


os.register_at_fork(after_in_child=_leave_calls_to_the_parent)


def _check_process(process: int) -> None:
    """A forked child has its parent's connection without the threads that serve it: every call would hang."""
    if os.getpid() != process:
        raise TransportError(FORKED, f"process {os.getpid()} was forked from {process}, which made the connection")


def _request_error(message: str) -> TransportError:
    """A request that failed: by a stage, whose code stands in the message, or before any stage saw it."""
    if (said := StageError.from_text(message)) is not None:
        kind, text, retry_after_s = said
        return TransportError(ERROR_CODES[kind], text, True, error_type=kind, retry_after_s=retry_after_s)
    refused = any(words in message for words in _REFUSALS)
    return TransportError("INVALID_ARGUMENT" if refused else "UNKNOWN", message)


def _transport_error(error: Any) -> TransportError:
    return TransportError(error.code().name, error.details() or "")
