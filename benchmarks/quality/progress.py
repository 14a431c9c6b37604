"""Progress of a long run: bars with the time left on a terminal, otherwise one line per finished phase."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[], None]


class Phases:
    """Named phases with their numbers of steps."""

    def __init__(self, steps: dict[str, int]) -> None:
        self._console = Console()
        self._bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks = {name: self._bars.add_task(name, total=count, start=False) for name, count in steps.items()}
        self._left = dict(steps)
        self._started: dict[str, float] = {}

    def __enter__(self) -> "Phases":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def begin(self, name: str) -> Advance:
        """Start a phase; the result is called after each of its steps."""
        self._bars.start_task(self._tasks[name])
        self._started[name] = time.perf_counter()

        def advance() -> None:
            self._bars.advance(self._tasks[name])
            self._left[name] -= 1
            if not self._left[name] and self._bars.disable:
                seconds = time.perf_counter() - self._started[name]
                self._console.print(f"{name}: done in {seconds:.0f} s", highlight=False)

        return advance
