"""The gRPC calls of clients: inference, health, metadata and statistics, and nothing more."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from diffsplat_client.contract import EDGE_HEADER, STOP_ANSWER
from tritonclient.grpc import service_pb2 as pb

from diffsplat.serving.edge.admission import Inference, RefusedError, wants_empty_final
from diffsplat.serving.edge.clients import Client, Clients
from diffsplat.serving.edge.dispatch import Answers, Dispatcher
from diffsplat.serving.edge.failures import refusal
from diffsplat.serving.edge.identity import Doorman
from diffsplat.serving.edge.tracing import trace_headers
from diffsplat.serving.edge.upstream import QUESTION_TIMEOUT_S, SERVICE, TritonUpstream
from diffsplat.serving.edge.wire import FINAL_RESPONSE, Response

FORWARDED = ("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics")
HEALTH_SERVICE = "grpc.health.v1.Health"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse{status}
# A client that takes no byte for this long, or less than this many a second, is taken for gone
STALL_LIMIT_S, SLOWEST_BYTES_PER_S = 60.0, 50_000.0


class Calls:
    """Handlers of one edge's calls.

    Args:
        upstream: the Triton behind the edge.
        dispatcher: takes the requests.
        clients: all there are.
        doorman: tells who is who. Health is everybody's business; all else is for those it knows.
    """

    def __init__(self, upstream: TritonUpstream, dispatcher: Dispatcher, clients: Clients, doorman: Doorman) -> None:
        self._upstream, self._dispatcher, self._clients, self._doorman = upstream, dispatcher, clients, doorman

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """For `grpc.aio.Server.add_generic_rpc_handlers`. Other methods of the protocol are unknown here."""
        unary = {name: grpc.unary_unary_rpc_method_handler(self._forwarder(name)) for name in FORWARDED}
        service = {
            **unary,
            "ServerLive": grpc.unary_unary_rpc_method_handler(self._server_live),
            "ServerReady": grpc.unary_unary_rpc_method_handler(self._server_ready),
            "ModelReady": grpc.unary_unary_rpc_method_handler(self._model_ready),
            "ModelInfer": grpc.unary_unary_rpc_method_handler(self._model_infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._model_stream_infer),
        }
        health = {"Check": grpc.unary_unary_rpc_method_handler(self._health)}
        return [
            grpc.method_handlers_generic_handler(SERVICE, service),
            grpc.method_handlers_generic_handler(HEALTH_SERVICE, health),
        ]

    async def _server_live(self, message: bytes, context: Any) -> bytes:
        await context.send_initial_metadata(((EDGE_HEADER, "1"),))
        answer: bytes = pb.ServerLiveResponse(live=True).SerializeToString()
        return answer

    async def _server_ready(self, message: bytes, context: Any) -> bytes:
        answer: bytes = pb.ServerReadyResponse(ready=self._dispatcher.ready).SerializeToString()
        return answer

    async def _model_ready(self, message: bytes, context: Any) -> bytes:
        """Triton calls a model ready whose processes are dead; whether its stages work, the supervisor knows."""
        await self._client_of(context)
        if not self._dispatcher.ready_for(pb.ModelReadyRequest.FromString(message).name):
            answer: bytes = pb.ModelReadyResponse(ready=False).SerializeToString()
            return answer
        return await self._forward("ModelReady", message, context)

    async def _health(self, message: bytes, context: Any) -> bytes:
        return _SERVING if self._dispatcher.ready else _NOT_SERVING

    def _forwarder(self, method: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def forward(message: bytes, context: Any) -> bytes:
            await self._client_of(context)
            return await self._forward(method, message, context)

        return forward

    async def _forward(self, method: str, message: bytes, context: Any) -> bytes:
        left_s = context.time_remaining()
        try:
            return await self._upstream.ask(method, message, min(left_s or QUESTION_TIMEOUT_S, QUESTION_TIMEOUT_S))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
            raise  # not reached

    async def _model_infer(self, message: bytes, context: Any) -> bytes:
        """STOP alone: everything else streams."""
        client = await self._client_of(context)
        try:
            headers = trace_headers(context.invocation_metadata() or ())
            inference = self._dispatcher.admit(client, message, headers)
            if not inference.is_stop:
                raise RefusedError("INVALID_ARG", "requests go through ModelStreamInfer: their answers are streams")
        except RefusedError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{error.code}: {error}")
        response = _stop_response(inference, self._dispatcher.stop(client, inference.client_id))
        response.head.raw_output_contents.extend(map(bytes, response.payload))
        answer: bytes = response.head.SerializeToString()
        return answer

    async def _model_stream_infer(self, _: Any, context: Any) -> None:
        """Any number of requests; their answers come as they are made, each under its request's id."""
        await StreamCall(context, await self._client_of(context), self._dispatcher).serve()

    async def _client_of(self, context: Any) -> Client:
        name = self._doorman.name_of(context.peer(), context.invocation_metadata() or (), context.auth_context())
        if name is None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "authorization: a bearer token of this server is needed"
            )
            raise AssertionError("abort raises")
        return self._clients.get(name)


class StreamCall:
    """One `ModelStreamInfer` call: reads requests and writes their answers until both have ended."""

    def __init__(self, context: Any, client: Client, dispatcher: Dispatcher) -> None:
        self._context, self._client, self._dispatcher = context, client, dispatcher
        self._trace_headers = trace_headers(context.invocation_metadata() or ())
        self._writing = asyncio.Lock()
        self._open: set[Answers] = set()

    async def serve(self) -> None:
        """Ends with the call: when the client has closed it and read its answers, or when it has left."""
        try:
            async with asyncio.TaskGroup() as tasks:  # what ends one of them, such as the client's leaving, ends all
                while (message := await self._context.read()) is not grpc.aio.EOF:
                    await self._take(message, tasks)
        finally:
            for answers in list(self._open):  # a task that is cancelled before it began cleans nothing up
                answers.leave()

    async def _take(self, message: bytes, tasks: asyncio.TaskGroup) -> None:
        try:
            inference = self._dispatcher.admit(self._client, message, self._trace_headers)
            if inference.is_stop:
                answer = self._dispatcher.stop(self._client, inference.client_id)
                await self._confirm_stop(inference, answer)
                return
            answers = self._dispatcher.ask(self._client, inference)
        except RefusedError as error:
            await self._write(refusal(error).to_bytes())
            return
        self._open.add(answers)
        tasks.create_task(self._deliver(answers))

    async def _deliver(self, answers: Answers) -> None:
        try:
            async for message in answers:
                await self._write(message)
        finally:
            self._open.discard(answers)
            answers.leave()

    async def _write(self, message: bytes) -> None:
        async with self._writing:
            try:
                async with asyncio.timeout(STALL_LIMIT_S + len(message) / SLOWEST_BYTES_PER_S):
                    await self._context.write(message)
            except TimeoutError:
                await self._context.abort(grpc.StatusCode.ABORTED, "the client does not read its answers")

    async def _confirm_stop(self, inference: Inference, answer: str) -> None:
        """As Triton does it: the answer, and then an empty message if the client asked for one at the end."""
        await self._write(_stop_response(inference, answer).to_bytes())
        if wants_empty_final(inference.request.head):
            end = Response(pb.ModelInferResponse(id=inference.client_id, model_name=inference.model))
            end.head.parameters[FINAL_RESPONSE].bool_param = True
            await self._write(end.to_bytes())


def _stop_response(inference: Inference, answer: str) -> Response:
    head = pb.ModelInferResponse(id=inference.client_id, model_name=inference.model)
    head.outputs.add(name=STOP_ANSWER.name, datatype=STOP_ANSWER.datatype, shape=STOP_ANSWER.dims)
    text = answer.encode()
    return Response(head, [memoryview(len(text).to_bytes(4, "little") + text)])
