"""The transport of `Client`: gRPC, blocking. Imported with the first connection: needs tritonclient.

It reads the response stream itself instead of handing Triton's client a callback: nothing that goes wrong while a
response is handled can get lost in another thread, one channel carries any number of streams, and every call has a
deadline and a true status code.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from diffsplat_client import grpc_messages
from diffsplat_client.connection import Connection, Headers
from diffsplat_client.tracing import trace_headers
from diffsplat_client.transport import Parameters, Tensors, TransportError


class GrpcTransport:
    """Triton's gRPC protocol, to HOST:PORT or as a Connection says."""

    def __init__(self, connection: Connection | str) -> None:
        if isinstance(connection, str):
            connection = Connection(connection)
        self._process = os.getpid()
        self._metadata = connection.metadata
        credentials, options = connection.credentials(), connection.channel_options()
        if credentials is None:
            self._channel = grpc.insecure_channel(connection.url, options)
        else:
            self._channel = grpc.secure_channel(connection.url, credentials, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def server_ready(self, timeout_s: float) -> bool:
        return bool(self._call(self._stub.ServerReady, pb.ServerReadyRequest(), timeout_s).ready)

    def model_ready(self, model: str, timeout_s: float) -> bool:
        return bool(self._call(self._stub.ModelReady, pb.ModelReadyRequest(name=model), timeout_s).ready)

    def versions(self, model: str, timeout_s: float) -> list[str]:
        return list(self._call(self._stub.ModelMetadata, pb.ModelMetadataRequest(name=model), timeout_s).versions)

    def parameters(self, model: str, timeout_s: float) -> dict[str, str]:
        reply = self._call(self._stub.ModelConfig, pb.ModelConfigRequest(name=model), timeout_s)
        return grpc_messages.parameters_of(reply)

    def keeps_requests(self, timeout_s: float) -> bool:
        _, call = self._call(self._stub.ServerLive.with_call, pb.ServerLiveRequest(), timeout_s)
        return grpc_messages.is_edge(call.initial_metadata())

    def stream(
        self,
        model: str,
        tensors: Tensors,
        request_id: str,
        timeout_s: float,
        version: str = "",
        parameters: Parameters | None = None,
    ) -> "GrpcStream":
        request = grpc_messages.infer_request(model, tensors, request_id, version, parameters)
        # one request and no more: the server closes the stream after the last response
        return GrpcStream(self._call(self._stub.ModelStreamInfer, iter((request,)), timeout_s, trace_headers()))

    def close(self) -> None:
        if os.getpid() == self._process:
            self._channel.close()

    def _call(self, method: Any, request: Any, timeout_s: float, headers: Headers = ()) -> Any:
        grpc_messages.check_process(self._process)
        try:
            return method(request, timeout=timeout_s, metadata=(*self._metadata, *headers))
        except grpc.RpcError as error:
            raise grpc_messages.status_error(error) from None
        except ValueError:  # all that grpc says when another thread has closed the channel
            raise grpc_messages.closed_error() from None


class GrpcStream:
    """The responses of one `ModelStreamInfer` call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._process = os.getpid()
        _CALLS.add(self)

    def __iter__(self) -> Iterator[Tensors]:
        """Is its own iterator."""
        return self

    def __next__(self) -> Tensors:
        """The next response as arrays."""
        grpc_messages.check_process(self._process)
        try:
            return grpc_messages.tensors_of(next(self._call))
        except grpc.RpcError as error:
            raise grpc_messages.status_error(error) from None
        except TransportError as error:
            if grpc_messages.must_be_drained(error):
                self._drain()
            raise

    def _drain(self) -> None:
        limit = threading.Timer(grpc_messages.DRAIN_TIMEOUT_S, self._call.cancel)
        limit.start()
        try:
            for _ in self._call:
                pass
        except grpc.RpcError:
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
