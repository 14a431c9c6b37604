"""When waiting requests will start and all will finish, if nothing else arrives: the schedule played ahead."""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from diffsplat.serving.engine.policy import EnginePolicy
from diffsplat.serving.engine.schedule import Schedule, Task

MAX_COST = 0.02  # of the time that forecasts may take
MAX_RISES = 2  # of a request's level that a forecast looks for
KEPT_STEPS = 9  # of each batch size; a median does not care for the step that waited for a compiler


class StepTimes:
    """Measured seconds of a step by the rows of its batch, of starting a request, and of a preview.

    Sizes without a measurement lie on straight lines between their neighbours; beyond these, and from one size alone,
    time is proportional to rows.
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._known: dict[int, float] = {}  # rows -> seconds, by rows
        self._starts: deque[float] = deque(maxlen=KEPT_STEPS)
        self._previews: deque[float] = deque(maxlen=KEPT_STEPS)
        self.start_s = 0.0  # of a request
        self.preview_s = 0.0  # of a preview

    @property
    def measured(self) -> bool:
        """Whether `step_s` is in seconds; before the first step a row takes 1."""
        return bool(self._known)

    def note_step(self, rows: int, seconds: float) -> None:
        """A step of a batch of `rows` took so long."""
        samples = self._samples.setdefault(rows, deque(maxlen=KEPT_STEPS))
        samples.append(seconds)
        self._known[rows] = max(median(samples), 1e-9)  # clocks can stand still
        self._known = dict(sorted(self._known.items()))

    def note_start(self, seconds: float) -> None:
        """Preparing a request took so long."""
        self._starts.append(seconds)
        self.start_s = median(self._starts)

    def note_preview(self, seconds: float) -> None:
        """Making a preview took so long."""
        self._previews.append(seconds)
        self.preview_s = median(self._previews)

    def step_s(self, rows: int) -> float:
        """Seconds of a step of a batch of `rows`."""
        if rows in self._known:
            return self._known[rows]
        if not self._known:
            return float(rows)
        below = [size for size in self._known if size < rows]
        above = [size for size in self._known if size > rows]
        if below and above:
            low, high = below[-1], above[0]
            share = (rows - low) / (high - low)
            return (1 - share) * self._known[low] + share * self._known[high]
        nearest = below[-1] if below else above[0]
        return self._known[nearest] * rows / nearest


class Forecast(NamedTuple):
    """Seconds from now."""

    to_start: float  # 0 for a request that has started
    to_finish: float  # of its denoising

    def later(self, age_s: float) -> "Forecast":
        """The same moments, seen later."""
        return Forecast(max(self.to_start - age_s, 0.0), max(self.to_finish - age_s, 0.0))


class Outlook:
    """The forecast of the present moment, played again only if that costs a small share of the time. With the lock."""

    def __init__(self, policy: EnginePolicy, times: StepTimes, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._times = times
        self._clock = clock
        self._made_s = -math.inf
        self._cost_s = 0.0
        self._found: dict[int, Forecast] = {}

    def of(self, tasks: Sequence[Task]) -> dict[int, Forecast]:
        """By `arrival`; empty before the first step has been measured. Lacks those that arrived since it was played."""
        if not self._times.measured:
            return {}
        now_s = self._clock()
        if now_s - self._made_s >= self._cost_s / MAX_COST:
            self._found = forecast(tasks, self._policy, self._times)
            self._made_s, self._cost_s = now_s, self._clock() - now_s
        age_s = now_s - self._made_s
        return {arrival: soon.later(age_s) for arrival, soon in self._found.items()}


def forecast(tasks: Sequence[Task], policy: EnginePolicy, times: StepTimes) -> dict[int, Forecast]:
    """By `arrival`, for every task.

    Plays the schedule from change to change: the same requests run until one of them ends or makes its first step, or
    one that yields rises, which is looked for only so many times.
    """
    schedule = Schedule(policy, times.step_s)
    left = [dataclasses.replace(task) for task in tasks]
    now_s, changes = 0.0, 0
    starts: dict[int, float] = {task.arrival: 0.0 for task in left if task.started}
    found: dict[int, Forecast] = {}
    while left:
        changes += 1
        plan = schedule.plan(left)
        now_s += times.start_s * sum(not task.started for task in plan.batch)
        for task in plan.batch:
            starts.setdefault(task.arrival, now_s)
        plan.begin(left)
        steps = _steps_until_change(schedule, plan.batch, left, levels_rise=changes <= MAX_RISES * len(tasks))
        seconds = steps * schedule.batch_s(plan.batch)
        now_s += seconds
        for task in plan.batch:
            task.step += steps
            if task.steps_left <= 0:
                found[task.arrival] = Forecast(starts[task.arrival], now_s)
        plan.note_yielding(left, seconds)
        left = [task for task in left if task.steps_left > 0]
    return found


def _steps_until_change(schedule: Schedule, batch: list[Task], tasks: list[Task], levels_rise: bool) -> int:
    if any(task.step == 0 for task in batch):
        return 1
    steps = min(task.steps_left for task in batch)
    latest = max(task.arrival for task in batch)
    waiting = [task for task in tasks if task.arrival < latest and task not in batch]
    if levels_rise and waiting:
        rise_s = min(map(schedule.until_next_level_s, waiting))
        steps = min(steps, max(1, math.ceil(rise_s / schedule.batch_s(batch))))
    return steps
