"""GenerationStream and AsyncGenerationStream: the events of one request, from the first to Finished."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from diffsplat_client.event_reader import EventReader
from diffsplat_client.events import Event
from diffsplat_client.request import GenerationRequest
from diffsplat_client.runtime import run


class _Stream:
    """What both kinds have."""

    def __init__(self, reader: EventReader) -> None:
        """Made by the clients and by handles."""
        self._reader = reader

    @property
    def request(self) -> GenerationRequest | None:
        """What was asked for; None for a stream of `attach(id)`, which knows the id alone."""
        return self._reader.request

    @property
    def request_id(self) -> str:
        """The request's id, by which it can be stopped."""
        return self._reader.request_id


class GenerationStream(_Stream):
    """Iterator of Queued, Progress, Preview and, at last, Finished.

    Made by `Client.stream` and `GenerationHandle.events`. Anything but Finished that ends the former (close, Ctrl-C,
    the timeout, an error on this side) stops the request at the server too; those of a handle leave it alone.
    """

    def __enter__(self) -> "GenerationStream":
        """Close at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the request if it has not finished."""
        self.close()

    def __del__(self) -> None:
        """A forgotten stream is closed."""
        self.close()

    def __iter__(self) -> Iterator[Event]:
        """Is its own iterator."""
        return self

    def __next__(self) -> Event:
        """The next event; raises what `Client.generate` raises.

        Threads may share a stream: each event goes to one.
        """
        event = run(self._reader.next())
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Stop the request unless it is over; whoever waits for an event gets RequestCancelledError.

        May be called from any thread.
        """
        run(self._reader.close())

    def stop(self) -> str:
        """Stop the request; answers and errors as in `Client.stop`, and "already_finished" once it is over here."""
        return run(self._reader.stop())


class AsyncGenerationStream(_Stream):
    """Asynchronous iterator of Queued, Progress, Preview and, at last, Finished: the twin of GenerationStream.

    The request is sent when the block is entered, or the first event asked for. Cancelling a task that waits for an
    event stops the request like everything else that ends the stream early.
    """

    def __init__(self, reader: EventReader, forget: Callable[[EventReader], Any]) -> None:
        """`forget` closes the reader of a stream that was forgotten."""
        super().__init__(reader)
        self._forget = forget

    async def __aenter__(self) -> "AsyncGenerationStream":
        """Send the request; close at the end of the block."""
        await self._reader.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the request if it has not finished."""
        await self.close()

    def __del__(self) -> None:
        """A forgotten stream is closed."""
        self._forget(self._reader)

    def __aiter__(self) -> AsyncIterator[Event]:
        """Is its own iterator."""
        return self

    async def __anext__(self) -> Event:
        """The next event; raises what `Client.generate` raises.

        Tasks may share a stream: each event goes to one.
        """
        event = await self._reader.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def close(self) -> None:
        """Stop the request unless it is over; whoever waits for an event gets RequestCancelledError.

        May be called from any task.
        """
        await self._reader.close()

    async def stop(self) -> str:
        """Stop the request; answers and errors as in `Client.stop`, and "already_finished" once it is over here."""
        return await self._reader.stop()
