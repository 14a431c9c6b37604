"""Who makes the next step: functions of tasks and measured step times, without clock, thread or network.

Every request has a LEVEL: its priority, and one more each time that it has yielded for `patience` times as long as all
of its work takes alone:

    alone_s = steps * step_s(rows)                                 step_s: measured seconds of a step of so many rows
    left_s  = (steps - step) * step_s(rows)
    level   = priority + floor(yielded_s / (patience * alone_s))

A request YIELDS while it does not run and one that arrived after it does. So those of priority q that arrive after a
request of priority p <= q hold it up for at most (q - p + 1) * patience * alone_s seconds, whatever arrives, and until
the next place is free: then it goes before all of them.

Requests RANK by level, the highest first, then by the least `left_s` (not with order "arrival"), then by arrival.

One is SHORT beside another if its level is not lower and its `alone_s` is at most `overtake_share` of the other's
`left_s` (never with order "arrival"). It OVERTAKES the other if it is short beside it, or if both its priority and its
level are higher: what it has yielded alone wins the next free place, not one that is taken.

There are `max_batch` PLACES. A request keeps its place until it ends or is overtaken; free places go by rank. Who has
none pauses or waits, except that a newcomer is a GUEST in the place of the last in rank for its first step. Those with
a place sit out the steps by which they would slow down one that is short beside them (`max_stretch`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diffsplat.serving.engine.policy import SHORTEST, EnginePolicy

StepSeconds = Callable[[int], float]  # rows of a batch -> seconds of its step


@dataclass(eq=False)
class Task:
    """What the schedule knows of a request."""

    arrival: int  # counts requests
    priority: int
    rows: int  # in the network's batch
    steps: int
    step: int = 0  # steps done
    yielded_s: float = 0.0
    request: int = -1  # the `arrival` of the first one of the same request
    previewed_s: float = 0.0  # that its previews have taken
    delayed_s: float = 0.0  # that previews of others have taken while it was there
    started: bool = False  # its state is in memory
    has_place: bool = False

    @property
    def steps_left(self) -> int:
        """Steps to do."""
        return self.steps - self.step


class Plan(NamedTuple):
    """One step: who makes it, and who has a place. Best first."""

    batch: list[Task]
    placed: list[Task]

    def begin(self, tasks: Sequence[Task]) -> None:
        """Give and take the places, and start who is in the batch."""
        for task in tasks:
            task.has_place = False
        for task in self.placed:
            task.has_place = True
        for task in self.batch:
            task.started = True

    def note_yielding(self, tasks: Sequence[Task], seconds: float) -> None:
        """After `seconds` of steps of the batch: whoever did not run while a later one did has yielded."""
        latest = max((task.arrival for task in self.batch), default=-1)
        ran = set(map(id, self.batch))
        for task in tasks:
            if task.arrival < latest and id(task) not in ran:
                task.yielded_s += seconds


@dataclass(frozen=True)
class View:
    """A task at one moment: what the rules compare."""

    task: Task
    level: int
    alone_s: float
    left_s: float

    @property
    def rank(self) -> tuple[float, ...]:
        """Sort key: the smallest goes first."""
        return (-self.level, self.left_s, self.task.arrival)


class Schedule:
    """The rules above, for one policy and the step times known now."""

    def __init__(self, policy: EnginePolicy, step_s: StepSeconds) -> None:
        self._policy = policy
        self._step_s = step_s
        self._share = policy.overtake_share if policy.order == SHORTEST else 0.0

    def batch_s(self, batch: Sequence[Task]) -> float:
        """Seconds of one step of a batch."""
        return self._step_s(sum(task.rows for task in batch))

    def view(self, task: Task) -> View:
        """Its level and its work; with order "arrival" as if nobody knew how much work is left."""
        step_s = self._step_s(task.rows)
        alone_s = task.steps * step_s
        level = task.priority + math.floor(task.yielded_s / (self._policy.patience * alone_s))
        return View(task, level, alone_s, task.steps_left * step_s if self._policy.order == SHORTEST else 0.0)

    def ranked(self, tasks: Sequence[Task]) -> list[View]:
        """The first in rank first."""
        return sorted(map(self.view, tasks), key=lambda view: view.rank)

    def until_next_level_s(self, task: Task) -> float:
        """Seconds that it must yield to rise once more."""
        rise_s = self._policy.patience * task.steps * self._step_s(task.rows)
        return (math.floor(task.yielded_s / rise_s) + 1) * rise_s - task.yielded_s

    def plan(self, tasks: Sequence[Task]) -> Plan:
        """The next step of `tasks`. Those of the batch that are not started are to be started for it."""
        ranked = self.ranked(tasks)
        placed = [view for view in ranked if view.task.has_place]
        for_all = self._policy.max_batch + self._policy.early_starts  # the states beyond are for those that overtake
        states = sum(view.task.started for view in ranked)
        last = placed[-1] if placed else None
        for view in ranked:
            if view.task.has_place:
                continue
            if len(placed) < self._policy.max_batch:
                if not view.task.started and states >= for_all:
                    continue
            else:
                assert last is not None
                if not self._overtakes(view, last) or (not view.task.started and states >= self._policy.max_states):
                    continue
                placed.remove(last)
            placed.append(view)
            last = max(placed, key=lambda view: view.rank)
            states += not view.task.started
        placed.sort(key=lambda view: view.rank)
        seats = {view.task.arrival for view in placed}
        newcomers = [view for view in ranked if not view.task.started and view.task.arrival not in seats]
        batch = self._without_stretch(self._with_guests(placed, newcomers[: max(0, for_all - states)]))
        return Plan([view.task for view in batch], [view.task for view in placed])

    def _with_guests(self, placed: list[View], newcomers: list[View]) -> list[View]:
        """Newcomers instead of the last in rank, unless these are of a higher level or newcomers too."""
        batch = list(placed)
        for guest in newcomers:
            hosts = [view for view in batch if view.task.step > 0 and view.level <= guest.level]
            if self._policy.order != SHORTEST or not hosts:
                break
            batch[batch.index(hosts[-1])] = guest
        return sorted(batch, key=lambda view: view.rank)

    def _without_stretch(self, batch: list[View]) -> list[View]:
        """Leave out the last ones as long as they slow one down that is short beside them."""
        while len(batch) > 1:
            short = next((view for view in batch[:-1] if self._is_short_beside(view, batch[-1])), None)
            limit_s = math.inf if short is None else self._policy.max_stretch * self._step_s(short.task.rows)
            if self.batch_s([view.task for view in batch]) <= limit_s:
                break
            batch = batch[:-1]
        return batch

    def _overtakes(self, view: View, other: View) -> bool:
        """Whether it takes the place of one that has one."""
        if view.task.priority > other.task.priority and view.level > other.level:
            return True
        return self._is_short_beside(view, other)

    def _is_short_beside(self, view: View, other: View) -> bool:
        return view.level >= other.level and view.alone_s <= self._share * other.left_s
