"""Messages on their way to one reader, bounded: whoever fills an outbox waits for its reader."""

from collections import deque

from diffsplat.serving.edge.changes import Changes

MAX_MESSAGES = 64  # that wait for one reader


class ByteBudget:
    """How many bytes may wait for the readers of one client. A single message may be larger than that."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._changes = Changes()

    async def take(self, count: int) -> None:
        """Wait until there is room for `count` more bytes."""
        await self._changes.wait_for(lambda: not self.used or self.used + count <= self.limit)
        self.used += count

    def give_back(self, count: int) -> None:
        """They have been read, or will never be."""
        self.used -= count
        self._changes.notify()


class Outbox:
    """An asynchronous iterator over what was put; a message counts until the next one is asked for."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._messages: deque[bytes] = deque()
        self._read = 0  # bytes of the message that the reader has now
        self._ended = self._closed = False
        self._changes = Changes()

    async def put(self, message: bytes) -> None:
        """Wait for room; a closed outbox drops what is put."""
        await self._changes.wait_for(lambda: self._closed or len(self._messages) < MAX_MESSAGES)
        if self._closed:
            return
        await self._budget.take(len(message))
        if self._closed:
            self._budget.give_back(len(message))
        else:
            self._messages.append(message)
            self._changes.notify()

    def end(self) -> None:
        """The reader's iteration ends when it has read what is here."""
        self._ended = True
        self._changes.notify()

    def close(self) -> None:
        """Nobody reads any more."""
        self._closed = True
        left, self._read = self._read + sum(map(len, self._messages)), 0
        self._messages.clear()
        self._budget.give_back(left)
        self._changes.notify()

    def __aiter__(self) -> "Outbox":
        """Is its own iterator."""
        return self

    async def __anext__(self) -> bytes:
        """The next message."""
        read, self._read = self._read, 0
        if read:
            self._budget.give_back(read)
        await self._changes.wait_for(lambda: self._messages or self._ended)
        if not self._messages:
            raise StopAsyncIteration
        message = self._messages.popleft()
        self._read = len(message)
        self._changes.notify()
        return message
