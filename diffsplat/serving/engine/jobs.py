"""What the engine keeps of a request: while it is there, before it arrives (its STOP), and after it has ended."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from diffsplat.serving.engine.interface import Listener, State, Work
from diffsplat.serving.engine.schedule import Task

# A STOP may overtake its request, which is then still in the stages before `denoise`: it is remembered for this long
EARLY_STOP_S = 10.0
MAX_EARLY_STOPS = 1024
ENDED_KEPT_S = 600.0  # a STOP that comes later is told that there is no such request
MAX_ENDED = 4096


@dataclass(eq=False)
class Job(Generic[Work, State]):
    """One request that has not ended."""

    request_id: str
    task: Task  # its part in the schedule; guarded by the engine's lock
    work: Work
    listener: Listener[State]
    submitted_s: float
    start_by_s: float | None  # a request that still waits then is given up, and one that has not finished at end_by_s
    end_by_s: float | None
    preview_every: int = 0  # steps; 0: never
    state: State | None = None
    stopped: bool = False
    asked_s: float = 0.0  # when the listener was last asked whether its client has left
    reported_s: float = 0.0  # when progress was last reported
    reported_position: int = 0
    reported_start_s: float = math.nan  # when it was told that it would start; nan: it was not told
    started_s: float = 0.0
    previews: int = 0  # that were made
    previews_skipped: int = 0


class RecentIds:
    """Ids of requests and when something happened to them. Guarded by the engine's lock."""

    def __init__(self, clock: Callable[[], float], kept_s: float, max_ids: int) -> None:
        """Each is kept for `kept_s` seconds; of more than `max_ids` the oldest are forgotten."""
        self._clock = clock
        self._kept_s = kept_s
        self._max_ids = max_ids
        self._noted_s: dict[str, float] = {}  # oldest first

    def note(self, request_id: str) -> None:
        """It happened now. An empty id stands for no id."""
        if not request_id:
            return
        self._noted_s.pop(request_id, None)  # the newest go last
        self._noted_s[request_id] = self._clock()
        if len(self._noted_s) > self._max_ids:
            del self._noted_s[next(iter(self._noted_s))]

    def has(self, request_id: str) -> bool:
        """Whether it happened, and not too long ago."""
        return self._clock() - self._noted_s.get(request_id, -math.inf) < self._kept_s

    def take(self, request_id: str) -> bool:
        """The same, and forget it."""
        found = self.has(request_id)
        self._noted_s.pop(request_id, None)
        return found
