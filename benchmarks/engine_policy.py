"""The denoise engine's policy on a real denoiser, in this process: who waits for whom, and what that costs.

    python -m benchmarks.engine_policy bundles/pico [--pairs 20] [--steps 20] [--json PATH]

Two cases, each in interleaved pairs whose order alternates:

    eight clients            eight requests at once: the engine against one request at a time, and against batches of
                             whole requests, which nobody joins or leaves before all of them have ended
    short behind seven long  a request of 4 steps arrives while seven of 100 steps are there: against its time alone,
                             and the seven against themselves with first come, first served

Printed: the median ratio of all pairs with a 95 % interval by bootstrap. Exits with 1 if one misses its bar. On two
quiet cores a pair with pico takes about 15 s; standard error has a line for each.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# as the launcher sets it for the server's processes; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from diffsplat_client.request import GenerationRequest

from benchmarks.bootstrap import median_interval
from benchmarks.ensemble_overhead import find_repository
from benchmarks.machine import describe_machine
from diffsplat.serving.engine.engine import Engine
from diffsplat.serving.engine.forecast import StepTimes
from diffsplat.serving.engine.interface import EngineProgress
from diffsplat.serving.engine.policy import EnginePolicy, first_come_first_served

if TYPE_CHECKING:
    from diffsplat.stages.denoise import DenoiseStage
    from diffsplat.stages.denoise_job import DenoiseJob
    from diffsplat.stages.work import DenoiseWork

POLICY = EnginePolicy()  # as in model_repository/denoise/config.pbtxt
CLIENTS = 8
LONG_REQUESTS, SHORT_STEPS = 7, 4
GIVE_UP_S = 3600.0


class Row(NamedTuple):
    """A ratio and its bar, if it has one."""

    name: str
    ratios: list[float]  # of each pair
    bar: float | None = None
    at_most: bool = True  # lower is better

    @property
    def median(self) -> float:
        """Of all pairs."""
        return statistics.median(self.ratios)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of the medians of samples of the pairs."""
        return median_interval(self.ratios)

    @property
    def reached(self) -> bool:
        """Whether the median is on the right side of the bar."""
        return self.bar is None or (self.median <= self.bar if self.at_most else self.median >= self.bar)

    def __str__(self) -> str:
        """A line of the table."""
        low, high = self.interval
        bar = "" if self.bar is None else f"{'<=' if self.at_most else '>='} {self.bar:g}"
        missed = "" if self.reached else "  MISSED"
        return f"{self.name:64}{self.median:7.3f}{f'{low:.3f} .. {high:.3f}':>18}   {bar}{missed}"


class Timer:
    """The listener of one request: when it was sent, made its first step, and ended."""

    def __init__(self) -> None:
        self.sent_s = time.perf_counter()
        self.first_step_s = self.ended_s = 0.0
        self.over = threading.Event()
        self.started = threading.Event()
        self.error: Exception | None = None
        self.last = EngineProgress("queued")

    def progress(self, progress: EngineProgress) -> None:
        self.last = progress
        if progress.step >= 1 and not self.started.is_set():
            self.first_step_s = time.perf_counter() - self.sent_s
            self.started.set()

    def finished(self, state: "DenoiseJob", denoise_ms: float, queued_ms: float) -> None:
        state.result()  # waits until it has been computed
        self.ended_s = time.perf_counter() - self.sent_s
        self.over.set()

    def failed(self, error: Exception, end_state: str) -> None:
        self.error = error
        self.over.set()

    def is_cancelled(self) -> bool:
        return False

    def wait(self) -> "Timer":
        """Until the request has ended; its error, if any."""
        if not self.over.wait(GIVE_UP_S):
            raise TimeoutError(f"a request has not ended after {GIVE_UP_S:g} s")
        if self.error is not None:
            raise self.error
        return self


class Bench:
    """A denoiser, and the inputs of requests by their steps."""

    def __init__(self, repository: Path) -> None:
        from diffsplat.pipeline import Pipeline
        from diffsplat.stages.preview import PreviewStage

        pipeline = Pipeline.load(repository)
        self._denoise: DenoiseStage = pipeline.denoise
        self._previews = PreviewStage.load(repository / "decode" / "1")
        self._encode: Callable[[GenerationRequest], DenoiseWork] = pipeline.encode.run
        for requests in range(1, POLICY.max_batch + 1):  # where sizes are compiled, none is in a measurement
            self._denoise.warm_up(requests)

    def works(self, steps: int, count: int) -> "list[DenoiseWork]":
        """Requests that differ in their seeds."""
        return [self._encode(GenerationRequest("a red cube", seed=seed, steps=steps)) for seed in range(count)]

    def run_whole_batches(self, works: "Sequence[DenoiseWork]", size: int) -> "Together":
        """Requests in batches that run from the first step to the last of the longest."""
        began_s = time.perf_counter()
        first_steps_s: list[float] = []
        for begin in range(0, len(works), size):
            states = [self._denoise.start(work) for work in works[begin : begin + size]]
            while going := [state for state in states if state.step < state.steps]:
                self._denoise.step(going)
                if len(first_steps_s) == begin:
                    first_steps_s += [time.perf_counter() - began_s] * len(states)
            for state in states:
                state.result()
        return Together(statistics.mean(first_steps_s), time.perf_counter() - began_s)

    def start(self, policy: EnginePolicy) -> "Engine[DenoiseWork, DenoiseJob]":
        """An engine, to be closed; it knows what a preview takes, and no step times yet."""
        times = StepTimes()
        times.note_preview(self._previews.warm_up())
        return Engine(self._denoise, policy, times=times, preview=self._previews.run)


def send(
    engine: "Engine[DenoiseWork, DenoiseJob]", works: "Sequence[DenoiseWork]", preview_every: int = 0
) -> list[Timer]:
    """Submit requests one right after the other."""
    timers = []
    for work in works:
        timers.append(Timer())
        engine.submit("", work, timers[-1], preview_every=preview_every)
    return timers


class Together(NamedTuple):
    """Requests that were sent at once."""

    first_step_s: float  # mean
    all_done_s: float


def run_clients(bench: Bench, policy: EnginePolicy, works: "Sequence[DenoiseWork]") -> Together:
    """All requests at once."""
    engine = bench.start(policy)
    try:
        timers = [timer.wait() for timer in send(engine, works)]
    finally:
        engine.close()
    first = statistics.mean(timer.first_step_s for timer in timers)
    return Together(first, max(timer.ended_s for timer in timers))


class Behind(NamedTuple):
    """A short request behind long ones."""

    short_s: float
    long_s: float  # mean


def run_short_behind_long(
    bench: Bench, policy: EnginePolicy, long: "Sequence[DenoiseWork]", short: "DenoiseWork"
) -> Behind:
    """The short one is sent as soon as one of the long ones has made a step."""
    engine = bench.start(policy)
    try:
        timers = send(engine, long)
        timers[0].started.wait(GIVE_UP_S)
        (last,) = send(engine, [short])
        ended_s = [timer.wait().ended_s for timer in timers]
        return Behind(last.wait().ended_s, statistics.mean(ended_s))
    finally:
        engine.close()


def measure(bench: Bench, pairs: int, steps: int, long_steps: int) -> list[Row]:
    """Every ratio of every pair."""
    works = bench.works(steps, CLIENTS)
    long, (short,) = bench.works(long_steps, LONG_REQUESTS), bench.works(SHORT_STEPS, 1)
    serial, fifo = first_come_first_served(EnginePolicy(max_batch=1)), first_come_first_served(POLICY)
    rows = [
        Row(f"{CLIENTS} clients: mean time to first step / one at a time", [], 0.25),
        Row(f"{CLIENTS} clients: throughput / one at a time", [], 1.0, at_most=False),
        Row(f"{CLIENTS} clients: mean time to first step / batches of whole requests", []),
        Row(f"{CLIENTS} clients: throughput / batches of whole requests", [], at_most=False),
        Row(f"{SHORT_STEPS} steps behind {LONG_REQUESTS} x {long_steps}: time / alone", [], 4.0),
        Row(f"{LONG_REQUESTS} x {long_steps} steps: mean time / first come, first served", [], 1.1),
    ]
    for pair in range(-1, pairs):
        order = sorted(("ours", "theirs"), reverse=pair % 2 == 1)
        together = {name: run_clients(bench, POLICY if name == "ours" else serial, works) for name in order}
        whole = bench.run_whole_batches(works, POLICY.max_batch)
        alone_s = run_clients(bench, serial, [short]).all_done_s
        behind = {name: run_short_behind_long(bench, POLICY if name == "ours" else fifo, long, short) for name in order}
        ours = together["ours"]
        ratios = [
            ours.first_step_s / together["theirs"].first_step_s,
            together["theirs"].all_done_s / ours.all_done_s,
            ours.first_step_s / whole.first_step_s,
            whole.all_done_s / ours.all_done_s,
            behind["ours"].short_s / alone_s,
            behind["ours"].long_s / behind["theirs"].long_s,
        ]
        print(f"pair {pair + 1} of {pairs}:", *(f"{ratio:.3f}" for ratio in ratios), file=sys.stderr, flush=True)
        if pair >= 0:  # the one before is a warm-up
            for row, ratio in zip(rows, ratios, strict=True):
                row.ratios.append(ratio)
    return rows


def main() -> int:
    """Measure, print, and write as JSON when asked; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_policy", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="BUNDLE_OR_REPOSITORY")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20, help="of each of the eight clients' requests")
    parser.add_argument("--long-steps", type=int, default=100, help="of the requests that the short one finds there")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    rows = measure(Bench(find_repository(args.path)), args.pairs, args.steps, args.long_steps)
    print(f"{f'{args.path.name}, {args.pairs} interleaved pairs':64}{'median':>7}{'95 %':>18}   bar")
    figures: list[dict[str, Any]] = []
    for row in rows:
        print(row)
        figures.append({**row._asdict(), "median": row.median, "interval": row.interval, "reached": row.reached})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        options = {"path": str(args.path), "steps": args.steps, "long_steps": args.long_steps}
        record = {**describe_machine(), **options, "rows": figures}
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(not all(row.reached for row in rows))


if __name__ == "__main__":
    sys.exit(main())
