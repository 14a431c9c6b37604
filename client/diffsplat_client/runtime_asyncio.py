"""The runtime of `AsyncClient`. Imported when one is used: asyncio takes longer to import than all of the client."""

import asyncio
import contextlib
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from diffsplat_client.connection import Connection
from diffsplat_client.event_reader import EventReader
from diffsplat_client.runtime import Pause
from diffsplat_client.transport import AsyncTransport


class AsyncioRuntime:
    """Waits by suspending the task, in one event loop after another."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None  # the one that was used last
        self._work: set[asyncio.Task[None]] = set()

    def connect(self, connection: Connection) -> AsyncTransport:
        from diffsplat_client.grpc_aio_transport import GrpcAioTransport

        return GrpcAioTransport(connection)

    def has_moved(self) -> bool:
        loop = self.running_loop()
        if self.loop is loop:
            return False
        if self.loop is not None and self.loop.is_running():
            raise RuntimeError("this AsyncClient is in use by the event loop of another thread: make one for each loop")
        before, self.loop = self.loop, loop
        return before is not None

    def lock(self) -> AbstractAsyncContextManager[Any]:
        return asyncio.Lock()

    def pause(self) -> Pause:
        return _AsyncioPause()

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        await asyncio.shield(task)

    def running_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the caller; RuntimeError says what to do without one."""
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "AsyncClient needs a running asyncio event loop: await it in a coroutine that asyncio.run() runs, "
                "or use Client, which needs none"
            ) from None

    async def finish_all(self) -> None:
        """Wait for all work that goes on in this loop."""
        loop = self.running_loop()
        if work := {task for task in self._work if task.get_loop() is loop}:
            await asyncio.wait(work)

    def forget(self, reader: EventReader) -> None:
        """Close the reader of a stream that was garbage-collected, perhaps by another thread."""
        if self.loop is not None and reader.is_open:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the connection
                self.loop.call_soon_threadsafe(self._close_soon, reader)

    def _close_soon(self, reader: EventReader) -> None:
        work = asyncio.ensure_future(reader.close())
        self._work.add(work)
        work.add_done_callback(self._work.discard)


class _AsyncioPause:
    def __init__(self) -> None:
        self._cut = asyncio.Event()

    async def wait(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._cut.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def cut(self) -> None:
        self._cut.set()
