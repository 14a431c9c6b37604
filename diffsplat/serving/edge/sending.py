"""Sending: a request on its way through one run of Triton."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from diffsplat.serving.edge.upstream import Upstream, UpstreamGoneError
from diffsplat.serving.edge.wire import Response

_tasks: set[asyncio.Task[None]] = set()  # an event loop alone would not keep them


class Sending:
    """Reads Triton's stream to its end, even when nobody wants it any more.

    Cancelling the stream would leave the request running, and can crash Triton 2.51.

    Args:
        request_id: its id at Triton, which no other sending has.
        message: the request.
        upstream: the Triton that computes it.
        find_fault: why a response means that the server is broken or about to end; empty if it does not.
        take: gets every response up to the first of those.

    Attributes:
        fault: why the server failed; empty if it did not.
    """

    def __init__(
        self,
        request_id: str,
        message: bytes,
        upstream: Upstream,
        find_fault: Callable[[Response], str],
        take: Callable[[Response], Awaitable[None]],
    ) -> None:
        self.fault = ""
        self._request_id, self._upstream = request_id, upstream
        self._find_fault, self._take = find_fault, take
        self._given_up = False
        self._taking = asyncio.Lock()
        self._reading = _keep(asyncio.create_task(self._read(message)))

    async def ended_within(self, timeout_s: float) -> bool:
        """Whether Triton has said its last, or does so within `timeout_s`."""
        ended, _ = await asyncio.wait([self._reading], timeout=timeout_s)
        for task in ended:
            task.result()  # raises what went wrong in the edge
        return bool(ended)

    async def give_up(self, fault: str) -> None:
        """Take no more responses: those of another sending may follow."""
        self._given_up = True
        async with self._taking:
            self.fault = fault

    def cancel(self) -> None:
        """Read no more: the edge is being closed."""
        self._reading.cancel()

    def stop(self) -> None:
        """Let Triton stop what may still run of it."""
        _keep(asyncio.create_task(self._upstream.stop(self._request_id)))

    async def _read(self, message: bytes) -> None:
        try:
            async for data in self._upstream.infer(message):
                async with self._taking:
                    response = Response.parse(data)
                    if self._given_up or self.fault:
                        continue
                    self.fault = self._find_fault(response)
                    if not self.fault:
                        await self._take(response)
        except UpstreamGoneError as error:
            self.fault = self.fault or str(error)


def _keep(task: asyncio.Task[None]) -> asyncio.Task[None]:
    def ended(task: asyncio.Task[None]) -> None:
        _tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            task.exception()  # of a sending that was given up, nobody asks for it

    _tasks.add(task)
    task.add_done_callback(ended)
    return task
