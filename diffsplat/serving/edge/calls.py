"""The gRPC calls of clients: inference, health, metadata and statistics, and nothing more."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from diffsplat.serving.edge.admission import Inference, RefusedError, admit, wants_empty_final
from diffsplat.serving.edge.clients import Client, Clients
from diffsplat.serving.edge.jobs import Job, refusal
from diffsplat.serving.edge.outbox import Outbox
from diffsplat.serving.edge.upstream import QUESTION_TIMEOUT_S, SERVICE, ServerRuns, TritonUpstream
from diffsplat.serving.edge.wire import FINAL_RESPONSE, Response

FORWARDED = ("ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics")
HEALTH_SERVICE = "grpc.health.v1.Health"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse{status}
# A client that takes no byte for this long, or less than this many a second, is taken for gone
STALL_LIMIT_S, SLOWEST_BYTES_PER_S = 60.0, 50_000.0


class Calls:
    """Handlers of one edge's calls.

    Args:
        upstream, runs: the Triton behind the edge.
        clients: what is running for whom.
    """

    def __init__(self, upstream: TritonUpstream, runs: ServerRuns, clients: Clients) -> None:
        self._upstream, self._runs, self._clients = upstream, runs, clients
        self.draining = False

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """For `grpc.aio.Server.add_generic_rpc_handlers`. Other methods of the protocol are unknown here."""
        unary = {name: grpc.unary_unary_rpc_method_handler(self._forwarder(name)) for name in FORWARDED}
        service = {
            **unary,
            "ServerLive": grpc.unary_unary_rpc_method_handler(self._server_live),
            "ServerReady": grpc.unary_unary_rpc_method_handler(self._server_ready),
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._model_infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._model_stream_infer),
        }
        health = {"Check": grpc.unary_unary_rpc_method_handler(self._health)}
        return [
            grpc.method_handlers_generic_handler(SERVICE, service),
            grpc.method_handlers_generic_handler(HEALTH_SERVICE, health),
        ]

    def _ready(self) -> bool:
        return self._runs.run is not None and not self.draining

    async def _server_live(self, message: bytes, context: Any) -> bytes:
        answer: bytes = pb.ServerLiveResponse(live=True).SerializeToString()
        return answer

    async def _server_ready(self, message: bytes, context: Any) -> bytes:
        answer: bytes = pb.ServerReadyResponse(ready=self._ready()).SerializeToString()
        return answer

    async def _health(self, message: bytes, context: Any) -> bytes:
        return _SERVING if self._ready() else _NOT_SERVING

    def _forwarder(self, method: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def forward(message: bytes, context: Any) -> bytes:
            left_s = context.time_remaining()
            try:
                return await self._upstream.ask(method, message, min(left_s or QUESTION_TIMEOUT_S, QUESTION_TIMEOUT_S))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
                raise  # not reached

        return forward

    async def _model_infer(self, message: bytes, context: Any) -> bytes:
        """STOP alone: everything else streams."""
        client = self._client_of(context)
        try:
            inference = admit(message)
            if not inference.is_stop:
                raise RefusedError("INVALID_ARG", "requests go through ModelStreamInfer: their answers are streams")
        except RefusedError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{error.code}: {error}")
        _stop(client, inference)
        answer: bytes = pb.ModelInferResponse(model_name=inference.model, id=inference.client_id).SerializeToString()
        return answer

    async def _model_stream_infer(self, _: Any, context: Any) -> None:
        """Any number of requests; their answers come as they are made, each under its request's id."""
        await StreamCall(context, self._client_of(context), self._begin).serve()

    def _client_of(self, context: Any) -> Client:
        return self._clients.get(host_of(context.peer()))

    def _begin(self, client: Client, inference: Inference, reader: Outbox) -> Job:
        try:
            if self.draining:
                raise RefusedError("UNAVAILABLE", "the server is shutting down and takes no new requests")
            client.check_room()
        except RefusedError as error:
            error.head = inference.request.head
            raise
        job = Job(inference, self._upstream, self._runs)
        job.attach(reader)
        self._clients.start(client, job)
        return job


class StreamCall:
    """One `ModelStreamInfer` call: reads requests and writes their answers until both have ended."""

    def __init__(self, context: Any, client: Client, begin: Callable[[Client, Inference, Outbox], Job]) -> None:
        """`begin` starts a request for a reader, or raises RefusedError."""
        self._context, self._client, self._begin = context, client, begin
        self._writing = asyncio.Lock()

    async def serve(self) -> None:
        """Ends with the call: when the client has closed it and read its answers, or when it has left."""
        async with asyncio.TaskGroup() as tasks:  # whatever ends one of them, such as the client's leaving, ends all
            while (message := await self._context.read()) is not grpc.aio.EOF:
                await self._take(message, tasks)

    async def _take(self, message: bytes, tasks: asyncio.TaskGroup) -> None:
        outbox = Outbox(self._client.unread)
        try:
            inference = admit(message)
            if inference.is_stop:
                _stop(self._client, inference)
                await self._confirm_stop(inference)
                return
            job = self._begin(self._client, inference, outbox)
        except RefusedError as error:
            await self._write(refusal(error).to_bytes())
            return
        tasks.create_task(self._deliver(job, outbox))

    async def _deliver(self, job: Job, outbox: Outbox) -> None:
        self._client.unread_answers += 1
        try:
            async for message in outbox:
                await self._write(message)
        finally:
            self._client.unread_answers -= 1
            job.detach(outbox)
            await outbox.close()

    async def _write(self, message: bytes) -> None:
        async with self._writing:
            try:
                async with asyncio.timeout(STALL_LIMIT_S + len(message) / SLOWEST_BYTES_PER_S):
                    await self._context.write(message)
            except TimeoutError:
                await self._context.abort(grpc.StatusCode.ABORTED, "the client does not read its answers")

    async def _confirm_stop(self, inference: Inference) -> None:
        """Nothing, as Triton does for a request that ends without a response, unless its end was asked for."""
        if wants_empty_final(inference.request.head):
            end = Response(pb.ModelInferResponse(id=inference.client_id, model_name=inference.model))
            end.head.parameters[FINAL_RESPONSE].bool_param = True
            await self._write(end.to_bytes())


def host_of(peer: str) -> str:
    """The address in gRPC's name of a peer, such as `ipv4:127.0.0.1:40000`, without the port."""
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


def _stop(client: Client, inference: Inference) -> None:
    for job in client.named(inference.client_id):
        job.stop()
