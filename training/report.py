"""Reports of a run: a JSON line per record, image panels, and on a terminal a progress bar with the time left."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)

_LINE_EVERY = 50  # steps between printed lines where there is no terminal
_Item = TypeVar("_Item")


def with_time_left(items: Sequence[_Item], what: str) -> Iterator[_Item]:
    """Iterate over the items and show the time left: as a bar on a terminal, elsewhere as a line after every tenth."""
    console = Console()
    if console.is_terminal:
        yield from track(items, what, console=console)
        return
    started, tenths = time.monotonic(), 0
    for done, item in enumerate(items, start=1):
        yield item
        if 10 * done // len(items) > tenths:
            tenths = 10 * done // len(items)
            left = (time.monotonic() - started) * (len(items) / done - 1)
            console.print(f"{what}: {done}/{len(items)}, {left:.0f} s left", highlight=False, soft_wrap=True)


class Reporter:
    """Writes ``log.jsonl`` and ``panels/`` under `out`; drops an interrupted run's records after `start_step`.

    Of several processes only the main one (`is_main`) writes and prints.
    """

    def __init__(self, out: Path, stage: str, steps: int, start_step: int, is_main: bool = True) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.stage = stage
        self._is_main = is_main
        self.panels = out / "panels"
        self._steps = steps
        self._console = Console(quiet=not is_main)
        self._path = out / "log.jsonl" if is_main else Path(os.devnull)
        if is_main:
            _truncate_log(self._path, start_step)
        self._file = self._path.open("a", buffering=1)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(stage, total=steps, completed=start_step, loss=math.nan)

    def __enter__(self) -> "Reporter":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one training record."""
        self._write({"step": step, **values})
        if not self._console.is_terminal and (step == 1 or step % _LINE_EVERY == 0):
            self.note(f"step {step}/{self._steps}  " + _line(values))

    def evaluation(self, step: int, values: dict[str, float], panels: dict[str, np.ndarray]) -> None:
        """Write one evaluation record and its images, ``panels/<step>_<name>.png``."""
        self._write({"step": step, **{f"validation/{name}": value for name, value in values.items()}})
        if self._is_main:
            self.panels.mkdir(exist_ok=True)
            for name, image in panels.items():
                Image.fromarray(image).save(self.panels / f"{step:06}_{name}.png")
        self.note(f"step {step}/{self._steps}  validation: " + _line(values))

    def skipped(self, step: int, what: str, count: str) -> None:
        """Write and print that the update after `step` was skipped."""
        self._write({"step": step, "skipped": what})
        self.note(f"step {step}/{self._steps}  skipped ({count}): {what}")

    def progress(self, step: int, loss: float) -> None:
        """Advance the progress bar."""
        self._bar.update(self._task, completed=step, loss=loss)

    def note(self, text: str) -> None:
        """Print one line."""
        self._console.print(f"{self.stage}: {text}", highlight=False, soft_wrap=True)

    def _write(self, record: dict[str, float | str]) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def _line(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def _truncate_log(path: Path, step: int) -> None:
    """Drop records after `step`, which will be written again, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # torn by a kill
        if record["step"] <= step:
            kept.append(line)
    path.write_text("".join(line + "\n" for line in kept))
