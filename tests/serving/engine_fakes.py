"""A model that only counts steps, a clock that is driven, and a listener that records: an engine without a network."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from diffsplat.serving.engine.interface import EngineProgress
from diffsplat.stages.work_size import WorkSize
from tests.serving.processes import TIMEOUT_S


@dataclass
class Clock:
    """Stands still until it is moved."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Counter:
    """A request whose only work is to count."""

    name: str
    steps: int
    step: int = 0


@dataclass
class CountingModel:
    """Records which requests were stepped together; can be held at a step boundary and told to fail."""

    fail_start: set[str] = field(default_factory=set)
    fail_step: dict[str, int] = field(default_factory=dict)  # name -> the step that fails
    batches: list[list[str]] = field(default_factory=list)
    gate: threading.Semaphore | None = None  # one release lets one step run
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def size(self, work: tuple[str, int]) -> WorkSize:
        return WorkSize(work[1])

    def start(self, work: tuple[str, int]) -> Counter:
        if work[0] in self.fail_start:
            raise ValueError(f"{work[0]} cannot start")
        return Counter(*work)

    def step(self, states: Sequence[Counter]) -> None:
        self.entered.release()
        if self.gate is not None:
            assert self.gate.acquire(timeout=TIMEOUT_S)
        for state in states:
            if self.fail_step.get(state.name) == state.step:
                raise ValueError(f"{state.name} fails at step {state.step}")
        self.batches.append([state.name for state in states])
        for state in states:
            state.step += 1


@dataclass
class TimedModel(CountingModel):
    """Each step moves the clock by `cost_s(requests)`, and then whatever is due arrives: all in the engine's thread."""

    clock: Clock = field(default_factory=Clock)
    cost_s: Callable[[int], float] = float
    arrivals: list[tuple[float, Callable[[], None]]] = field(default_factory=list)  # seconds of the clock, growing
    most_states: int = 0
    live: list[Counter] = field(default_factory=list)

    def start(self, work: tuple[str, int]) -> Counter:
        state = super().start(work)
        self.live = [other for other in self.live if other.step < other.steps] + [state]
        self.most_states = max(self.most_states, len(self.live))
        return state

    def step(self, states: Sequence[Counter]) -> None:
        super().step(states)
        self.clock.now_s += self.cost_s(len(states))
        while self.arrivals and self.arrivals[0][0] <= self.clock.now_s:
            self.arrivals.pop(0)[1]()


class Recorder:
    """Listens to one request."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.progressed: list[EngineProgress] = []
        self.told_s: list[float] = []  # when, by the clock
        self.result: Counter | None = None
        self.error: Exception | None = None
        self.end_state: str | None = None
        self.ended_s = 0.0
        self.over = threading.Event()
        self.cancelled = False
        self.clock = clock or Clock()

    def progress(self, progress: EngineProgress) -> None:
        self.progressed.append(progress)
        self.told_s.append(self.clock())

    def finished(self, state: Counter, denoise_ms: float, queued_ms: float) -> None:
        assert denoise_ms >= 0 and queued_ms >= 0
        self.result, self.ended_s = state, self.clock()
        self.over.set()

    def failed(self, error: Exception, end_state: str) -> None:
        assert not self.over.is_set(), "told twice"
        self.error, self.end_state = error, end_state
        self.over.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait(self) -> "Recorder":
        assert self.over.wait(TIMEOUT_S), "the request neither finished nor failed"
        return self
