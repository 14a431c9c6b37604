"""SIGINT and SIGTERM during a run: at once while data is prepared, between two steps afterwards."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Stopped(BaseException):
    """A stop signal while networks and data are prepared; its name is the message."""


class StopSignals:
    """Context in which the first stop signal is remembered, or raised as `Stopped`; a second one ends the process.

    Attributes:
        received: Name of the signal, "" before.
        at_once: Whether a signal raises `Stopped` where the program happens to be.
    """

    def __init__(self) -> None:
        self.received = ""
        self.at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, self._previous[number])
        if self.at_once:
            raise Stopped(self.received)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Context in which SIGTERM acts like Ctrl-C, for commands that can be continued."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # also where a shell's & has SIGINT ignored
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
