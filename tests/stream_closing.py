"""Close a stream from another thread at the moment its reader waits for the next response."""

import threading
from collections.abc import Callable

from diffsplat_client.stream import GenerationStream
from diffsplat_client.transport import AsyncResponseStream, Tensors


class _Watched:
    """Responses that say when they are waited for."""

    def __init__(self, responses: AsyncResponseStream, waiting: threading.Event) -> None:
        self.responses = responses
        self.waiting = waiting

    async def read(self) -> Tensors | None:
        self.waiting.set()
        return await self.responses.read()

    def cancel(self) -> None:
        self.responses.cancel()


def when_read(events: GenerationStream, act: Callable[[], object]) -> threading.Thread:
    """Call `act` in a thread once somebody waits for the next event. The thread is to be joined."""
    waiting = threading.Event()
    reader = events._reader
    reader._responses = _Watched(reader._responses, waiting)

    def run() -> None:
        if waiting.wait(60):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
