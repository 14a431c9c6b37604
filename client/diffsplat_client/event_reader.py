"""EventReader: one request from its sending to Finished, and how it is stopped: the core of both kinds of streams."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from diffsplat_client.contract import STATUS, STOP_ANSWERS
from diffsplat_client.errors import DiffSplatError, InvalidRequestError, RequestCancelledError
from diffsplat_client.events import Event, Finished
from diffsplat_client.gathering import Gathering
from diffsplat_client.generation import Generation
from diffsplat_client.request import GenerationRequest
from diffsplat_client.runtime import Runtime
from diffsplat_client.status import Status, parse_status
from diffsplat_client.transport import AsyncResponseStream, Tensors, TransportError

STOP_TIMEOUT_S = 1.0  # a STOP only saves the server work: not worth a long wait
_, ALREADY_FINISHED, _ = STOP_ANSWERS


class Calls(NamedTuple):
    """What a reader asks of its client's connection."""

    send: Callable[[float], Awaitable[AsyncResponseStream]]  # sends the request; gets the monotonic time of the call
    explain: Callable[[TransportError], DiffSplatError]  # makes the typed error for a failure of the request
    stop: Callable[[], Awaitable[str]]  # stops it: one of contract.STOP_ANSWERS, or a typed error


class EventReader:
    """Reads Queued, Progress, Preview and, at last, Finished.

    If anything but Finished ends it (close, cancellation, Ctrl-C, the timeout, an error on this side), the request is
    stopped on the server too. Cancelling a stream does not reach a running stage of an ensemble, so a STOP is sent to
    the stage itself. A request that the server keeps is not stopped.
    """

    def __init__(
        self, calls: Calls, runtime: Runtime, request: GenerationRequest | None, request_id: str, *, kept: bool = False
    ) -> None:
        """Nothing is sent yet.

        Args:
            calls: how it is sent and stopped.
            runtime: how to wait.
            request: what was asked for; None for a kept request of which only the id is known.
            request_id: its id at the server.
            kept: the server finishes it without a reader.
        """
        self.request, self.request_id, self.kept = request, request_id, kept
        self._calls, self._runtime = calls, runtime
        self._responses: AsyncResponseStream | None = None  # once it is sent
        self._started = 0.0  # monotonic time of the call
        self._gathering = Gathering(request, request_id)
        self._events: deque[Event] = deque()  # read, and not yet asked for
        self._left = False  # the reader has left
        self._over = False  # it has ended, or the reader has left
        self._lock = threading.Lock()  # guards _over, _left and _responses
        self._reading = runtime.lock()  # callers that share a reader take turns

    @property
    def is_open(self) -> bool:
        """Whether the request has been sent, and is still read."""
        return self._responses is not None and not self._over

    async def open(self) -> None:
        """Send the request unless it has been sent."""
        async with self._reading:
            await self._open()

    async def next(self) -> Event | None:
        """The next event, None after the last one; raises what `Client.generate` raises."""
        async with self._reading:
            if self._left or (self._over and not self._events):
                return None
            try:
                while not self._events:
                    tensors = await (await self._open()).read()
                    self._events.extend(self._end_events() if tensors is None else self._take(tensors))
                return self._events.popleft()
            except TransportError as error:
                # a stage that fails does not end the others: the denoiser may still be at work
                await self._end(stop=error.code not in ("UNAVAILABLE", "INVALID_ARGUMENT", "CANCELLED"))
                raise self._calls.explain(error) from None
            except BaseException:
                await self._end(stop=True)
                raise

    async def result(self) -> Generation:
        """The only result; InvalidRequestError, before anything is sent, where there are several."""
        if self.request is not None and self.request.num_seeds > 1:
            raise InvalidRequestError(
                f"num_seeds = {self.request.num_seeds}: must be 1 for one object; generate_all and results give several"
            )
        return (await self.results())[0]

    async def results(self) -> list[Generation]:
        """Read to the end: all results, by index."""
        results = []
        try:
            while (event := await self.next()) is not None:
                if isinstance(event, Finished):
                    results.append(event.result)
            if self._left:
                raise RequestCancelledError("the request was stopped")
        finally:
            await self.close()
        return sorted(results, key=lambda result: result.index)

    async def first_status(self) -> Status | None:
        """Where the request stands, None when the first message does not come in time; then leave.

        It has finished when all its results have: until then, those that have say nothing.
        """
        finished = set()
        try:
            while (tensors := await (await self._open()).read()) is not None:
                if STATUS.name in tensors:
                    status = parse_status(tensors[STATUS.name])
                    if status.phase == "finished":
                        finished.add(status.index)
                    if status.phase != "finished" or len(finished) == status.results:
                        return status
        except TransportError as error:
            if error.code != "DEADLINE_EXCEEDED":
                raise self._calls.explain(error) from None
        finally:
            self.leave()
        return None

    async def close(self) -> None:
        """Stop the request unless it is over or kept; a blocked reader gets RequestCancelledError."""
        await self._end(stop=True)

    async def stop(self) -> str:
        """Read no more and stop the request, kept or not; the server's answer, or a typed error."""
        if self.leave() or self.kept:
            return await self._calls.stop()
        return ALREADY_FINISHED

    def leave(self) -> bool:
        """Read no more; whether the server still works on the request."""
        with self._lock:
            was_over, self._over, self._left = self._over, True, True
            responses = self._responses
        if was_over or responses is None:
            return False
        # before any STOP, so that a request that is still on its way to the denoiser does not arrive after it
        responses.cancel()
        return True

    async def _end(self, *, stop: bool) -> None:
        if self.leave() and stop and not self.kept:
            await self._runtime.finish(self._try_stop())

    async def _try_stop(self) -> None:
        with contextlib.suppress(DiffSplatError):  # gone or busy: the request ends at its deadline
            await self._calls.stop()

    async def _open(self) -> AsyncResponseStream:
        if self._responses is None:
            self._started = time.monotonic()
            responses = await self._calls.send(self._started)
            with self._lock:
                self._responses = responses
                closed = self._over
            if closed:
                responses.cancel()
                raise RequestCancelledError("the request was stopped")
        return self._responses

    def _take(self, tensors: Tensors) -> list[Event]:
        return self._gathering.take(tensors, self._started)

    def _end_events(self) -> list[Event]:
        """The server has closed the stream."""
        if self._over:  # somebody closed the reader meanwhile
            raise RequestCancelledError("the request was stopped")
        try:
            events = self._gathering.end(self._started)
        except TransportError as error:
            self._over = True  # nothing is left to stop
            raise self._calls.explain(error) from None
        self._over = True
        return events
