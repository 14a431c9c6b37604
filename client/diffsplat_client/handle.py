"""GenerationHandle and AsyncGenerationHandle: a request that the server keeps, found by its id."""

from collections.abc import Callable, Coroutine
from typing import Any

from diffsplat_client.event_reader import STOP_TIMEOUT_S, EventReader
from diffsplat_client.generation import Generation
from diffsplat_client.runtime import run
from diffsplat_client.status import Status
from diffsplat_client.stream import AsyncGenerationStream, GenerationStream

Follow = Callable[[float | None], EventReader]  # a new reader of the request, with its time limit
Stop = Callable[[float], Coroutine[Any, Any, str]]
STATUS_TIMEOUT_S = 5.0


class GenerationHandle:
    """One submitted request. Made by `Client.submit` and `Client.attach`; threads may share it.

    The server keeps the result for some minutes (docs/edge.md says how long) after which the id is unknown.
    """

    def __init__(self, request_id: str, follow: Follow, stop: Stop) -> None:
        self.id = request_id
        self._follow, self._stop = follow, stop

    def status(self, timeout_s: float = STATUS_TIMEOUT_S) -> Status | None:
        """Where the request stands: `phase` is queued, denoising, finished or ended (`early_end` says why).

        None if the server, which has the request, says nothing within `timeout_s`.

        Raises:
            RequestNotFoundError: nothing goes by this id, or not any more.
            ServerUnavailableError: no server answers.
        """
        return run(self._follow(timeout_s).first_status())

    def events(self, timeout_s: float | None = None) -> GenerationStream:
        """The newest event and all that follow, up to Finished; as often as wanted, also after the end.

        Leaving them early does not stop the request. `timeout_s` and errors as in `Client.stream`, and
        RequestNotFoundError.
        """
        reader = self._follow(timeout_s)
        run(reader.open())
        return GenerationStream(reader)

    def result(self, timeout_s: float | None = None) -> Generation:
        """Wait for the result. RequestTimeoutError after `timeout_s` does not stop the request: ask again."""
        return run(self._follow(timeout_s).result())

    def results(self, timeout_s: float | None = None) -> list[Generation]:
        """The same for requests with `num_seeds`: all results."""
        return run(self._follow(timeout_s).results())

    def cancel(self, timeout_s: float = STOP_TIMEOUT_S) -> str:
        """Stop the request at its next step; the answer, and errors, as in `Client.stop`."""
        return run(self._stop(timeout_s))


class AsyncGenerationHandle:
    """One submitted request, for asyncio: the twin of GenerationHandle. Made by `AsyncClient.submit` and `attach`."""

    def __init__(
        self, request_id: str, follow: Follow, stop: Stop, stream_of: Callable[[EventReader], AsyncGenerationStream]
    ) -> None:
        self.id = request_id
        self._follow, self._stop, self._stream_of = follow, stop, stream_of

    async def status(self, timeout_s: float = STATUS_TIMEOUT_S) -> Status | None:
        """Where the request stands: `phase` is queued, denoising, finished or ended (`early_end` says why).

        Answers and errors as in `GenerationHandle.status`.
        """
        return await self._follow(timeout_s).first_status()

    def events(self, timeout_s: float | None = None) -> AsyncGenerationStream:
        """The newest event and all that follow, up to Finished; as often as wanted, also after the end.

        Leaving them early does not stop the request. Arguments and errors as in `GenerationHandle.events`.
        """
        return self._stream_of(self._follow(timeout_s))

    async def result(self, timeout_s: float | None = None) -> Generation:
        """Wait for the result. RequestTimeoutError after `timeout_s` does not stop the request: ask again."""
        return await self._follow(timeout_s).result()

    async def results(self, timeout_s: float | None = None) -> list[Generation]:
        """The same for requests with `num_seeds`: all results."""
        return await self._follow(timeout_s).results()

    async def cancel(self, timeout_s: float = STOP_TIMEOUT_S) -> str:
        """Stop the request at its next step; the answer, and errors, as in `Client.stop`."""
        return await self._stop(timeout_s)
