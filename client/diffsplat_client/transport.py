"""The seam between the client and the wire: what a transport must do, blocking or on asyncio, and how it fails."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

Tensors = dict[str, np.ndarray]
Parameters = Mapping[str, str | bool]  # of a request, beside its tensors
FORKED = "FORKED"  # a code of ours, beside gRPC's


class TransportError(Exception):
    """A call failed: gRPC's status name (`INVALID_ARGUMENT`, `UNAVAILABLE`, ...) and the server's message."""

    def __init__(
        self,
        code: str,
        message: str,
        by_stage: bool = False,
        *,
        error_type: str | None = None,
        retry_after_s: float | None = None,
        end_state: str | None = None,
    ) -> None:
        """`by_stage`: a stage said so, not Triton or the connection; the rest is what it said, see DiffSplatError."""
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.by_stage = by_stage
        self.error_type = error_type
        self.retry_after_s = retry_after_s
        self.end_state = end_state


class ResponseStream(Protocol):
    """The responses of one inference, in order."""

    def __iter__(self) -> Iterator[Tensors]:
        """Is its own iterator."""
        ...

    def __next__(self) -> Tensors:
        """The next response; TransportError when the request failed."""
        ...

    def cancel(self) -> None:
        """End the stream at once, from any thread; a reader gets TransportError `CANCELLED`."""
        ...


class Transport(Protocol):
    """All that `Client` asks of a server; every method raises TransportError."""

    def server_ready(self, timeout_s: float) -> bool:
        """Whether every model is loaded and the server takes requests."""
        ...

    def model_ready(self, model: str, timeout_s: float) -> bool:
        """Whether a model is loaded and takes requests; an edge says so for all stages that it needs."""
        ...

    def versions(self, model: str, timeout_s: float) -> list[str]:
        """The loaded versions of a model."""
        ...

    def parameters(self, model: str, timeout_s: float) -> dict[str, str]:
        """The parameters of a model's configuration."""
        ...

    def stream(
        self,
        model: str,
        tensors: Tensors,
        request_id: str,
        timeout_s: float,
        version: str = "",
        parameters: Parameters | None = None,
    ) -> ResponseStream:
        """Send one inference, to the newest version by default; any number of responses may come."""
        ...

    def keeps_requests(self, timeout_s: float) -> bool:
        """Whether an edge is in front of the server, for which ids last."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


class AsyncResponseStream(Protocol):
    """ResponseStream as coroutines."""

    async def read(self) -> Tensors | None:
        """The next response, None after the last one; TransportError when the request failed."""
        ...

    def cancel(self) -> None:
        """End the stream at once; a reader gets TransportError `CANCELLED`."""
        ...


class AsyncTransport(Protocol):
    """Transport as coroutines: what `AsyncClient` asks of a server, and the form in which the core sees every wire."""

    async def server_ready(self, timeout_s: float) -> bool:
        """As in Transport."""
        ...

    async def model_ready(self, model: str, timeout_s: float) -> bool:
        """As in Transport."""
        ...

    async def versions(self, model: str, timeout_s: float) -> list[str]:
        """As in Transport."""
        ...

    async def parameters(self, model: str, timeout_s: float) -> dict[str, str]:
        """As in Transport."""
        ...

    def stream(
        self,
        model: str,
        tensors: Tensors,
        request_id: str,
        timeout_s: float,
        version: str = "",
        parameters: Parameters | None = None,
    ) -> AsyncResponseStream:
        """As in Transport; sends without waiting."""
        ...

    async def keeps_requests(self, timeout_s: float) -> bool:
        """As in Transport."""
        ...

    async def close(self) -> None:
        """Let go of the connection."""
        ...
