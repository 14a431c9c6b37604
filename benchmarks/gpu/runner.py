"""Runs sections one after the other, each in a process of its own and within its share of the time.

A CUDA error spoils its process, and a build may hang: neither must cost the other sections. Children are forked, so
that torch is imported once; the parent itself never touches a device.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.rows import RowLog

_TERMINATE_S = 5.0


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        out: folder of the results.
        device: "cpu", "cuda" or "cuda:N".
        tiny: very small networks of the same families: the same code in seconds, whose figures mean nothing.
    """

    out: Path
    device: str
    tiny: bool


@dataclass(frozen=True)
class Task:
    """What a section gets."""

    settings: Settings
    log: RowLog
    deadline_s: float  # of time.monotonic()

    @property
    def left_s(self) -> float:
        """Seconds left; a section leaves out what does not fit."""
        return self.deadline_s - time.monotonic()

    @property
    def seconds_per_figure(self) -> float:
        """How long a call is repeated."""
        return 0.02 if self.settings.tiny else 1.0


@dataclass(frozen=True)
class Section:
    """One part of the measurement."""

    name: str
    run: Callable[[Task], None]
    share: float  # of the time; what a section leaves over goes to those after it


@dataclass(frozen=True)
class Outcome:
    """How a section ended: "complete", "out of time", or the error."""

    name: str
    ended: str
    seconds: float


def run_section(section: Section, settings: Settings, limit_s: float) -> Outcome:
    """Run one section for at most `limit_s`; its rows are on disk whatever happens to it."""
    context = multiprocessing.get_context("fork")
    report = context.SimpleQueue()
    started = time.monotonic()
    process = context.Process(target=_child, args=(section, settings, started + limit_s, report), name=section.name)
    process.start()
    assert process.pid is not None
    try:
        process.join(limit_s)
        ended = _how_it_ended(process.exitcode, report)
    finally:  # whatever it started goes with it, also after Ctrl-C
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            process.join(_TERMINATE_S)
        process.kill()  # it may not have become a group yet
        process.join()
    process.close()
    return Outcome(section.name, ended, time.monotonic() - started)


def _how_it_ended(exit_code: int | None, report: "multiprocessing.SimpleQueue[str]") -> str:
    if exit_code is None:
        return "out of time"
    if not report.empty():
        return report.get()
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"


def _child(section: Section, settings: Settings, deadline_s: float, report: "multiprocessing.SimpleQueue[str]") -> None:
    os.setpgid(0, 0)  # with all that it starts
    try:
        section.run(Task(settings, RowLog(settings.out, section.name), deadline_s))
        report.put("complete")
    except Exception as error:  # noqa: BLE001 - whatever it is, the next section shall run
        traceback.print_exc(file=sys.stderr)
        report.put(f"failed: {type(error).__name__}: {error}".splitlines()[0])


def run_all(
    sections: Sequence[Section], settings: Settings, budget_s: float, after_each: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Run all; prints the time left before each one, and calls `after_each` with the outcomes so far."""
    deadline_s = time.monotonic() + budget_s
    outcomes: list[Outcome] = []
    for index, section in enumerate(sections):
        left_s = deadline_s - time.monotonic()
        share = section.share / sum(later.share for later in sections[index:])
        print(f"{section.name}: at most {left_s * share:.0f} s, {max(left_s, 0):.0f} s left in all", flush=True)
        outcomes.append(
            run_section(section, settings, left_s * share) if left_s > 0 else Outcome(section.name, "out of time", 0.0)
        )
        print(f"{section.name}: {outcomes[-1].ended}, {outcomes[-1].seconds:.1f} s", flush=True)
        after_each(outcomes)
    return outcomes
