"""Runtime: how the core of the clients waits: connections, locks and pauses.

The core (operations.py, session.py, event_reader.py, retries.py, probes.py) consists of coroutines that do no I/O of
their own. `AsyncClient` awaits them on asyncio. `Client` runs each to its end in one go: on the blocking runtime,
nothing that they await suspends.
"""

import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from diffsplat_client.connection import Connection
from diffsplat_client.transport import AsyncTransport, Parameters, ResponseStream, Tensors, Transport

_Result = TypeVar("_Result")


class Pause(Protocol):
    """A pause that may be cut short."""

    async def wait(self, seconds: float) -> bool:
        """Wait that long, or until it is cut short; whether it was."""
        ...

    def cut(self) -> None:
        """End it now, or before it begins."""
        ...


class Runtime(Protocol):
    """How a client waits."""

    def connect(self, connection: Connection) -> AsyncTransport:
        """A connection over gRPC."""
        ...

    def has_moved(self) -> bool:
        """Whether connections made before cannot be used here; RuntimeError where none could."""
        ...

    def lock(self) -> AbstractAsyncContextManager[Any]:
        """A lock that may be held while its holder waits."""
        ...

    def pause(self) -> Pause:
        """A new one."""
        ...

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for work that raises nothing, and that goes on if the wait is cancelled."""
        ...


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a coroutine of the core on the blocking runtime."""
    try:
        work.send(None)
    except StopIteration as end:
        result: _Result = end.value
        return result
    raise AssertionError("nothing suspends on the blocking runtime")


class BlockingRuntime:
    """Waits by blocking the thread."""

    def connect(self, connection: Connection) -> AsyncTransport:
        from diffsplat_client.grpc_transport import GrpcTransport

        return BlockingTransport(GrpcTransport(connection))

    def has_moved(self) -> bool:
        return False

    def lock(self) -> AbstractAsyncContextManager[Any]:
        return _BlockingLock()

    def pause(self) -> Pause:
        return _BlockingPause()

    async def finish(self, work: Coroutine[Any, Any, None]) -> None:
        await work


class BlockingTransport:
    """A blocking transport as the core sees it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def server_ready(self, timeout_s: float) -> bool:
        return self._transport.server_ready(timeout_s)

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        return self._transport.model_ready(model, timeout_s)

    async def versions(self, model: str, timeout_s: float) -> list[str]:
        return self._transport.versions(model, timeout_s)

    async def parameters(self, model: str, timeout_s: float) -> dict[str, str]:
        return self._transport.parameters(model, timeout_s)

    async def keeps_requests(self, timeout_s: float) -> bool:
        return self._transport.keeps_requests(timeout_s)

    def stream(
        self,
        model: str,
        tensors: Tensors,
        request_id: str,
        timeout_s: float,
        version: str = "",
        parameters: Parameters | None = None,
    ) -> "BlockingStream":
        return BlockingStream(self._transport.stream(model, tensors, request_id, timeout_s, version, parameters))

    async def close(self) -> None:
        self._transport.close()


class BlockingStream:
    """A blocking stream as the core sees it."""

    def __init__(self, responses: ResponseStream) -> None:
        self.responses: Iterator[Tensors] = responses
        self._cancel = responses.cancel

    async def read(self) -> Tensors | None:
        return next(self.responses, None)

    def cancel(self) -> None:
        self._cancel()


class _BlockingLock:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class _BlockingPause:
    def __init__(self) -> None:
        self._cut = threading.Event()

    async def wait(self, seconds: float) -> bool:
        return self._cut.wait(seconds)

    def cut(self) -> None:
        self._cut.set()
