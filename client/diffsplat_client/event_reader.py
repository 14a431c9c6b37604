"""EventReader: one request from its sending to Finished, and how it is stopped: the core of both kinds of streams."""

import contextlib
import dataclasses
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from diffsplat_client.contract import FRAMES, PREVIEW, STATUS, STOP_ANSWERS
from diffsplat_client.errors import DiffSplatError, RequestCancelledError, ServerError
from diffsplat_client.events import Event, Finished, events_of
from diffsplat_client.failures import early_end_error
from diffsplat_client.formats import RAW
from diffsplat_client.generation import Generation, parse_generation, read_assets
from diffsplat_client.request import GenerationRequest
from diffsplat_client.runtime import Runtime
from diffsplat_client.status import Status, find_early_end, parse_status
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
        self._tensors: Tensors = {}  # all that belongs to the result, from all responses so far
        self._events: deque[Event] = deque()  # read, and not yet asked for
        self._last: Status | None = None  # the status "finished" or "ended"
        self._over = False  # it has ended, or the reader has left
        self._lock = threading.Lock()  # guards _over and _responses
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
            if self._over:
                return None
            try:
                while not self._events:
                    if (tensors := await (await self._open()).read()) is None:
                        return Finished(self._result())
                    self._events.extend(self._take(tensors))
                return self._events.popleft()
            except TransportError as error:
                # a stage that fails does not end the others: the denoiser may still be at work
                await self._end(stop=error.code not in ("UNAVAILABLE", "INVALID_ARGUMENT", "CANCELLED"))
                raise self._calls.explain(error) from None
            except BaseException:
                await self._end(stop=True)
                raise

    async def result(self) -> Generation:
        """Read to the end."""
        try:
            while (event := await self.next()) is not None:
                if isinstance(event, Finished):
                    return event.result
        finally:
            await self.close()
        raise RequestCancelledError("the request was stopped")

    async def first_status(self) -> Status | None:
        """Where the request stands, None when the first message does not come in time; then leave."""
        try:
            while (tensors := await (await self._open()).read()) is not None:
                if STATUS.name in tensors:
                    return parse_status(tensors[STATUS.name])
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
            was_over, self._over = self._over, True
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
        """Keep what belongs to the result; the events in the response.

        Triton numbers the outputs of an ensemble's stages as they arrive, so a stage that overtakes its own answer to
        an earlier progress message finds its tensors in that message's response: only the names can be trusted.
        """
        of_now = (STATUS.name, PREVIEW.name)
        self._tensors |= {name: tensor for name, tensor in tensors.items() if name not in of_now}
        if STATUS.name in tensors:
            status = parse_status(tensors[STATUS.name])
            if status.phase in ("finished", "ended"):
                self._last = status
        return events_of(tensors)

    def _result(self) -> Generation:
        """The server has closed the stream: everything it had is here."""
        if self._over:  # somebody closed the reader meanwhile
            raise RequestCancelledError("the request was stopped")
        if self._last is None:
            raise ServerError("the server closed the stream without a result")
        if (end := self._last.early_end or find_early_end(self._tensors)) is not None:
            self._over = True  # nothing is left to stop
            raise self._calls.explain(early_end_error(end))
        request = self.request or _seen_request(self._tensors)
        result = parse_generation(self._tensors, request, self.request_id, self._last, self._started)
        if self.request is None:  # without the poses that were asked for
            result = dataclasses.replace(result, frames=self._tensors.get(FRAMES.name))
        self._over = True
        return result


def _seen_request(tensors: Tensors) -> GenerationRequest:
    """What a result shows of its request: the files' formats."""
    return GenerationRequest(formats=tuple(read_assets(tensors)) or (RAW,))
