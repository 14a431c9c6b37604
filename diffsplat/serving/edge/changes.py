"""Changes: how tasks of one event loop wait for each other's changes."""

import asyncio
from collections.abc import Callable


class Changes:
    """Like asyncio.Condition, but `notify` takes no lock and need not be awaited, so that cleaning up cannot be cut."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Let everybody who waits look again."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_for(self, predicate: Callable[[], object]) -> None:
        """Wait until this is true; it is looked at after every `notify`."""
        while not predicate():
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                self._waiting.discard(waiter)
