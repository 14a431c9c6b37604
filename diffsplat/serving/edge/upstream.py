"""The Triton behind the edge: its calls as bytes, and which run of it serves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import grpc
import numpy as np
from diffsplat_client.contract import STOP, STOP_MODEL
from tritonclient.grpc import service_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
QUESTION_TIMEOUT_S = 5.0  # for the small calls; Triton answers them at once unless it hangs
CONNECT_LIMIT_S = 5.0  # a server that serves lets itself be connected to sooner
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),  # it comes back on the same port
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class UpstreamGoneError(Exception):
    """The connection to Triton broke, or cannot be made."""


class ServerRuns(Protocol):
    """Which run of the server serves: a supervisor knows."""

    def run_of(self, model: str) -> int | None:
        """Number of the present run of a model, which grows with its new processes; None: it takes no requests."""
        ...


class Upstream(Protocol):
    """What requests need of Triton."""

    def infer(self, message: bytes) -> AsyncIterator[bytes]:
        """Send one request; its responses. UpstreamGoneError when there is no connection."""
        ...

    async def stop(self, request_id: str) -> None:
        """Ask every loaded version of the denoiser to stop a request; nothing is raised."""
        ...


class TritonUpstream:
    """A Triton at HOST:PORT. To be made in the event loop that uses it."""

    def __init__(self, url: str) -> None:
        self._channel = grpc.aio.insecure_channel(url, options=_OPTIONS)
        # a stream with one request: sent as such, it is opened, written and half closed in one operation, not in three
        self._stream = self._channel.unary_stream(f"/{SERVICE}/ModelStreamInfer")

    async def infer(self, message: bytes) -> AsyncIterator[bytes]:
        """One request on a stream of its own, which Triton ends after the last response."""
        try:
            await self._connect(CONNECT_LIMIT_S)
            call = self._stream(message)
            try:
                async for data in call:
                    yield data
            finally:
                call.cancel()  # where the reader gave up: at the end of the edge alone
        except TimeoutError:
            raise UpstreamGoneError("it does not accept connections") from None
        except grpc.aio.AioRpcError as error:
            raise UpstreamGoneError(f"the connection to it broke ({error.code().name})") from None

    async def stop(self, request_id: str) -> None:
        """To every version: while a server changes over, the older one still works on requests."""
        with contextlib.suppress(
            grpc.RpcError, UpstreamGoneError
        ):  # gone or busy: the request ends there, or is stopped once more
            question = pb.ModelMetadataRequest(name=STOP_MODEL).SerializeToString()
            metadata = pb.ModelMetadataResponse.FromString(await self.ask("ModelMetadata", question))
            for version in metadata.versions:
                stop = pb.ModelInferRequest(model_name=STOP_MODEL, model_version=version, id=request_id)
                stop.inputs.add(name=STOP.name, datatype=STOP.datatype, shape=STOP.dims)
                stop.raw_input_contents.append(np.ones(STOP.dims, np.bool_).tobytes())
                async for _ in self.infer(stop.SerializeToString()):
                    pass

    async def ask(self, method: str, message: bytes, timeout_s: float = QUESTION_TIMEOUT_S) -> bytes:
        """One of the small calls. grpc.RpcError as Triton gives it."""
        with contextlib.suppress(TimeoutError):  # then the call says what is wrong
            await self._connect(timeout_s)
        answer: bytes = await self._channel.unary_unary(f"/{SERVICE}/{method}")(message, timeout=timeout_s)
        return answer

    async def _connect(self, timeout_s: float) -> None:
        """Wait for the connection: right after a restart, a call would fail until the next attempt to make one."""
        if self._channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            await asyncio.wait_for(self._channel.channel_ready(), timeout_s)

    async def close(self) -> None:
        """Let go of the connection, and of what is still on it."""
        await self._channel.close()
