"""What the engine keeps of a request, and of stops whose requests have not arrived yet."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from diffsplat.serving.engine_interface import Listener, State, Work

# A STOP may overtake its request, which is then still in the stages before `denoise`: it is remembered for this long
EARLY_STOP_S = 10.0
MAX_EARLY_STOPS = 1024


@dataclass
class Job(Generic[Work, State]):
    """One request, waiting or active."""

    request_id: str
    work: Work
    listener: Listener[State]
    submitted_s: float
    start_by_s: float | None  # a request that still waits then is given up, and one that has not finished at end_by_s
    end_by_s: float | None
    state: State | None = None
    stopped: bool = False
    asked_s: float = 0.0  # when the listener was last asked whether its client has left
    reported_s: float = 0.0  # when progress was last reported
    reported_position: int = 0
    started_s: float = 0.0


class EarlyStops:
    """Ids to be stopped when their requests arrive. Guarded by the engine's lock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._asked_s: dict[str, float] = {}  # id -> when it was to be stopped, oldest first

    def remember(self, request_id: str) -> None:
        """Stop a request that arrives within `EARLY_STOP_S`."""
        self._asked_s.pop(request_id, None)  # the newest go last
        self._asked_s[request_id] = self._clock()
        if len(self._asked_s) > MAX_EARLY_STOPS:
            del self._asked_s[next(iter(self._asked_s))]

    def take(self, request_id: str) -> bool:
        """Whether the request that arrives now is to be stopped; it is forgotten."""
        return self._clock() - self._asked_s.pop(request_id, -math.inf) < EARLY_STOP_S
