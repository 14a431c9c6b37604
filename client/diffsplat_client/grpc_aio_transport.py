"""The transport of `AsyncClient`: grpc.aio, in the event loop that runs when it is made. See grpc_transport.py."""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from diffsplat_client import grpc_messages
from diffsplat_client.connection import Connection, Headers
from diffsplat_client.tracing import trace_headers
from diffsplat_client.transport import FORKED, Parameters, Tensors, TransportError


class GrpcAioTransport:
    """Triton's gRPC protocol, as a Connection says."""

    _process: int | None = None  # the one that grpc.aio was used in, and a thread of which it needs

    def __init__(self, connection: Connection) -> None:
        """TransportError `FORKED` in a child of a process that has used grpc.aio, which would hang there."""
        GrpcAioTransport._process = GrpcAioTransport._process or os.getpid()
        _check_process()
        self._metadata = connection.metadata
        credentials, options = connection.credentials(), connection.channel_options()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(connection.url, options)
        else:
            self._channel = grpc.aio.secure_channel(connection.url, credentials, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def server_ready(self, timeout_s: float) -> bool:
        return bool((await self._ask(self._stub.ServerReady, pb.ServerReadyRequest(), timeout_s)).ready)

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        return bool((await self._ask(self._stub.ModelReady, pb.ModelReadyRequest(name=model), timeout_s)).ready)

    async def versions(self, model: str, timeout_s: float) -> list[str]:
        reply = await self._ask(self._stub.ModelMetadata, pb.ModelMetadataRequest(name=model), timeout_s)
        return list(reply.versions)

    async def parameters(self, model: str, timeout_s: float) -> dict[str, str]:
        reply = await self._ask(self._stub.ModelConfig, pb.ModelConfigRequest(name=model), timeout_s)
        return grpc_messages.parameters_of(reply)

    async def keeps_requests(self, timeout_s: float) -> bool:
        call = self._call(self._stub.ServerLive, pb.ServerLiveRequest(), timeout_s)
        await _settle(call)
        return grpc_messages.is_edge(await call.initial_metadata())

    def stream(
        self,
        model: str,
        tensors: Tensors,
        request_id: str,
        timeout_s: float,
        version: str = "",
        parameters: Parameters | None = None,
    ) -> "GrpcAioStream":
        request = grpc_messages.infer_request(model, tensors, request_id, version, parameters)
        # one request and no more: the server closes the stream after the last response
        return GrpcAioStream(self._call(self._stub.ModelStreamInfer, (request,), timeout_s, trace_headers()))

    async def close(self) -> None:
        await self._channel.close()

    async def _ask(self, method: Any, request: Any, timeout_s: float) -> Any:
        return await _settle(self._call(method, request, timeout_s))

    def _call(self, method: Any, request: Any, timeout_s: float, headers: Headers = ()) -> Any:
        _check_process()
        try:
            return method(request, timeout=timeout_s, metadata=(*self._metadata, *headers))
        except grpc.aio.UsageError:  # another task has closed the channel
            raise grpc_messages.closed_error() from None


def _check_process() -> None:
    if os.getpid() != GrpcAioTransport._process:
        raise TransportError(
            FORKED,
            f"process {os.getpid()} was forked from one that had used AsyncClient: start processes with spawn, or fork "
            "before the first use",
        )


class GrpcAioStream:
    """The responses of one `ModelStreamInfer` call."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def read(self) -> Tensors | None:
        """The next response as arrays, None after the last one."""
        response = await _settle(self._call.read())
        if response is grpc.aio.EOF:
            return None
        try:
            return grpc_messages.tensors_of(response)
        except TransportError as error:
            if grpc_messages.must_be_drained(error):
                await asyncio.wait([asyncio.ensure_future(self._drain())], timeout=grpc_messages.DRAIN_TIMEOUT_S)
                self.cancel()
            raise

    async def _drain(self) -> None:
        try:
            while await _settle(self._call.read()) is not grpc.aio.EOF:
                pass
        except TransportError:
            pass  # it ended with a status; the error message has said more

    def cancel(self) -> None:
        """End the call; the server sees its client gone."""
        self._call.cancel()


async def _settle(work: Awaitable[Any]) -> Any:
    """The result of a call of grpc.aio; TransportError when it fails, `CANCELLED` when it was ended on this side.

    grpc.aio raises asyncio.CancelledError for the latter, which would look as if the caller's task were cancelled. So
    the call is awaited in a task of its own.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(_retrieve_error)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()  # ends the call too
        raise
    if task.cancelled():
        raise grpc_messages.closed_error()
    try:
        return task.result()
    except grpc.aio.AioRpcError as error:
        raise grpc_messages.status_error(error) from None
    except asyncio.InvalidStateError:  # from a channel that was closed before the call began
        raise grpc_messages.closed_error() from None


def _retrieve_error(task: "asyncio.Future[Any]") -> None:
    """Retrieve a task's error, since asyncio logs those that are never retrieved."""
    if not task.cancelled():
        task.exception()
