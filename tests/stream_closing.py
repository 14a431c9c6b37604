"""Close a stream from another thread at the moment its reader waits for the next response."""

import threading
from collections.abc import Callable, Iterator

from diffsplat_client.stream import GenerationStream
from diffsplat_client.transport import ResponseStream, Tensors


class _Watched:
    """Responses that say when they are waited for."""

    def __init__(self, responses: ResponseStream, waiting: threading.Event) -> None:
        self.responses = responses
        self.waiting = waiting

    def __iter__(self) -> Iterator[Tensors]:
        return self

    def __next__(self) -> Tensors:
        self.waiting.set()
        return next(self.responses)

    def cancel(self) -> None:
        self.responses.cancel()


def when_read(events: GenerationStream, act: Callable[[], object]) -> threading.Thread:
    """Call `act` in a thread once somebody waits for the next event. The thread is to be joined."""
    waiting = threading.Event()
    events._responses = _Watched(events._responses, waiting)

    def run() -> None:
        if waiting.wait(60):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread
