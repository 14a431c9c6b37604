"""AsyncClient: the twin of Client for asyncio.

    async with AsyncClient("localhost:8001") as client:
        red, blue = await asyncio.gather(client.generate("a red cube"), client.generate("a blue cube"))

        async with client.stream("a red cube") as events:
            async for event in events:
                ...

Leaving a stream early, or cancelling the task that waits for a result, stops the request.
"""

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from diffsplat_client.event_reader import STOP_TIMEOUT_S, EventReader
from diffsplat_client.generation import Generation
from diffsplat_client.handle import AsyncGenerationHandle
from diffsplat_client.operations import Operations, checked_generation, checked_reconstruction, new_id
from diffsplat_client.probes import ServerStatus
from diffsplat_client.reconstruction import Reconstruction
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import GenerationRequest
from diffsplat_client.stream import AsyncGenerationStream
from diffsplat_client.time_limits import CONNECT_TIMEOUT_S
from diffsplat_client.transport import AsyncTransport

if TYPE_CHECKING:
    from diffsplat_client.runtime_asyncio import AsyncioRuntime

_AsyncClient = TypeVar("_AsyncClient", bound="AsyncClient")


class AsyncClient(Operations[AsyncTransport]):
    """A connection to one server, made when it is first needed. Tasks of one event loop may share a client.

    It may be made anywhere and used in one event loop after another, each of which gets a connection of its own.
    Errors are those of Client, and RuntimeError outside an event loop.
    """

    @functools.cached_property
    def _runtime(self) -> "AsyncioRuntime":  # type: ignore[override]
        from diffsplat_client.runtime_asyncio import AsyncioRuntime

        return AsyncioRuntime()

    def _adapt(self, transport: AsyncTransport) -> AsyncTransport:
        return transport

    async def __aenter__(self: _AsyncClient) -> _AsyncClient:
        """Close at the end of the block."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go of the connection."""
        await self.close()

    async def close(self) -> None:
        """Stop what still runs and let go of the connection; a later call makes a new one."""
        await self._runtime.finish_all()
        await self._close()

    async def generate(
        self, prompt: str | GenerationRequest = "", *, timeout_s: float | None = None, **options: Any
    ) -> Generation:
        """Generate one object and wait for it.

        Arguments and errors as in `Client.generate`. Cancelling the task stops the request.
        """
        return await self._follow_new(prompt, options, timeout_s).result()

    async def generate_all(
        self, prompt: str | GenerationRequest = "", *, timeout_s: float | None = None, **options: Any
    ) -> list[Generation]:
        """Generate the objects of `num_seeds` seeds and wait for all of them; arguments and errors as in `generate`."""
        return await self._follow_new(prompt, options, timeout_s).results()

    def stream(
        self, prompt: str | GenerationRequest = "", *, timeout_s: float | None = None, **options: Any
    ) -> AsyncGenerationStream:
        """Generate one object and follow it; arguments and errors as in `generate`.

        The request is sent by `async with`, or when the first event is asked for. Closing the stream early, as leaving
        an `async with` block does, stops the request on the server.
        """
        return self._stream_of(self._follow_new(prompt, options, timeout_s))

    async def submit(
        self,
        prompt: str | GenerationRequest = "",
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> AsyncGenerationHandle:
        """Hand a request over to an edge, which finishes it without this client and keeps its result.

        Arguments and errors as in `Client.submit`.
        """
        request = checked_generation(prompt, options)
        request_id = new_id() if request_id is None else request_id
        await self._submit(request, request_id, timeout_s)
        return self._handle(request_id, request)

    async def attach(
        self, request_id: str, request: GenerationRequest | None = None, *, timeout_s: float | None = None
    ) -> AsyncGenerationHandle:
        """Find a submitted request again, running or finished; arguments as in `submit`.

        Results and errors as in `Client.attach`.
        """
        await self._attach(request_id, timeout_s)
        return self._handle(request_id, request)

    def _handle(self, request_id: str, request: GenerationRequest | None) -> AsyncGenerationHandle:
        follow = functools.partial(self._follow_kept, request_id, request)
        return AsyncGenerationHandle(request_id, follow, functools.partial(self._stop, request_id), self._stream_of)

    def _stream_of(self, reader: EventReader) -> AsyncGenerationStream:
        self._runtime.running_loop()  # fail here, not at the first event, when there is none
        return AsyncGenerationStream(reader, self._runtime.forget)

    async def reconstruct(
        self,
        images: np.ndarray | ReconstructionRequest,
        camera_to_world: np.ndarray | None = None,
        *,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Reconstruction:
        """Make splats of views of an object, by the bundle's GSRecon, and wait for them.

        Arguments and errors as in `Client.reconstruct`.
        """
        return await self._reconstruct(checked_reconstruction(images, camera_to_world, options), timeout_s)

    async def stop(self, request_id: str, timeout_s: float = STOP_TIMEOUT_S) -> str:
        """Stop a generation, of this client or another one, by its id.

        Answers and errors as in `Client.stop`.
        """
        return await self._stop(request_id, timeout_s)

    async def status(self, timeout_s: float = CONNECT_TIMEOUT_S) -> ServerStatus:
        """Ask the server and each of its stages whether they respond; a stage has `timeout_s` to answer.

        Errors as in `Client.status`.
        """
        return await self._status(timeout_s)
