"""Previews: when they are due, what they may cost others, and that skipped ones are told; on a driven clock."""

from dataclasses import dataclass, field

import pytest

from diffsplat.serving.engine.engine import Engine
from diffsplat.serving.engine.forecast import StepTimes
from diffsplat.serving.engine.policy import EnginePolicy
from tests.serving.engine_fakes import Clock, Counter, Recorder, TimedModel

STEP_S = 1.0  # of a request alone; a batch of two takes twice as long


@dataclass
class Painter:
    """Makes previews, each of which moves the clock."""

    clock: Clock
    cost_s: float
    failing: set[str] = field(default_factory=set)
    made: list[tuple[str, int]] = field(default_factory=list)
    made_s: list[float] = field(default_factory=list)  # when, by the clock

    @property
    def spent_s(self) -> float:
        return self.cost_s * len(self.made_s)

    def __call__(self, state: Counter) -> object:
        self.clock.now_s += self.cost_s
        self.made_s.append(self.clock())
        if state.name in self.failing:
            raise ValueError("not finite")
        self.made.append((state.name, state.step))
        return f"{state.name} after {state.step}"


@dataclass
class Bench:
    """An engine, its clock, and who asked for what."""

    engines: list[Engine]
    cost_s: float
    policy: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.model = TimedModel(clock=self.clock)
        self.painter = Painter(self.clock, self.cost_s)
        self.recorders: dict[str, Recorder] = {}

    def run(self, *requests: tuple[str, int, int]) -> None:
        """Name, steps and preview_every of each; the others arrive with the first step of the first one."""
        times = StepTimes()
        times.note_preview(self.cost_s)  # as of the warm-up
        policy = EnginePolicy(progress_interval_s=0.0, **self.policy)
        self.engine = Engine(self.model, policy, self.clock, times=times, preview=self.painter)
        self.engines.append(self.engine)
        first, *others = requests
        self.model.arrivals = [(self.clock(), self._submitter(request)) for request in others]
        self.submit(*first)
        for recorder in list(self.recorders.values()):
            recorder.wait()
        for name, _, _ in requests:
            self.recorders[name].wait()

    def submit(self, name: str, steps: int, preview_every: int) -> None:
        self.recorders[name] = Recorder(self.clock)
        self.engine.submit(name, (name, steps), self.recorders[name], preview_every=preview_every)

    def _submitter(self, request: tuple[str, int, int]):
        return lambda: self.submit(*request)

    def last(self, name: str):
        return self.recorders[name].progressed[-1]


def test_a_preview_comes_with_the_progress_of_its_step_and_never_with_the_last(engines: list[Engine]) -> None:
    bench = Bench(engines, cost_s=0.5)
    bench.run(("a", 9, 3))
    told = {progress.step: progress.preview for progress in bench.recorders["a"].progressed}
    assert {step: preview for step, preview in told.items() if preview} == {3: "a after 3", 6: "a after 6"}
    assert (bench.last("a").previews, bench.last("a").previews_skipped) == (2, 0)


def test_who_asks_for_none_gets_none(engines: list[Engine]) -> None:
    bench = Bench(engines, cost_s=0.5)
    bench.run(("a", 9, 0))
    assert not bench.painter.made and bench.last("a").previews == bench.last("a").previews_skipped == 0


def test_a_slow_decoder_makes_them_rarer(engines: list[Engine]) -> None:
    """Its own request may take twice as long: with previews of three steps' time, every third step has one."""
    bench = Bench(engines, cost_s=3 * STEP_S)
    bench.run(("a", 30, 1))
    assert len(bench.painter.made) == 9 and bench.painter.spent_s <= 30 * STEP_S
    assert (bench.last("a").previews, bench.last("a").previews_skipped) == (9, 20)


@pytest.mark.parametrize("cost_s", [0.01, 0.25, 0.9, 1.5, 4.0])
def test_others_lose_at_most_their_share(engines: list[Engine], cost_s: float) -> None:
    bench = Bench(engines, cost_s)
    bench.run(("other", 20, 0), ("showing", 20, 1))
    beside = [made_s for made_s in bench.painter.made_s if made_s < bench.recorders["other"].ended_s]
    assert len(beside) == min(int(0.1 * 20 * STEP_S / cost_s), 18)
    assert bench.last("showing").previews + bench.last("showing").previews_skipped == 19


def test_a_share_of_nothing_leaves_others_alone(engines: list[Engine]) -> None:
    bench = Bench(engines, cost_s=0.01, policy={"preview_share": 0.0})
    bench.run(("showing", 5, 1), ("other", 20, 0))
    others_end = bench.recorders["other"].ended_s
    assert others_end - 1000.0 == pytest.approx(25 * STEP_S) and not bench.painter.made


def test_without_a_share_of_its_own_there_are_none(engines: list[Engine]) -> None:
    assert not EnginePolicy(preview_own_share=0.0).makes_previews and EnginePolicy().makes_previews
    bench = Bench(engines, cost_s=0.01, policy={"preview_own_share": 0.0})
    bench.run(("a", 4, 1))
    assert not bench.painter.made and bench.last("a").previews_skipped == 3


def test_a_preview_that_fails_is_a_skipped_one(engines: list[Engine]) -> None:
    bench = Bench(engines, cost_s=0.1)
    bench.painter.failing = {"a"}
    bench.run(("a", 4, 1), ("b", 4, 0))
    assert bench.recorders["a"].result is not None and bench.recorders["b"].result is not None
    assert (bench.last("a").previews, bench.last("a").previews_skipped) == (0, 3)


def test_who_ends_with_the_step_does_not_wait_for_previews_of_others(engines: list[Engine]) -> None:
    bench = Bench(engines, cost_s=0.4, policy={"preview_share": 1.0})
    bench.run(("showing", 20, 1), ("short", 1, 0))
    steps_s = bench.recorders["short"].ended_s - 1000.0 - bench.painter.spent_s
    assert bench.recorders["short"].ended_s < bench.recorders["showing"].ended_s and steps_s <= 3 * STEP_S


def test_previews_of_one_request_delay_no_other(engines: list[Engine]) -> None:
    """Its seeds share the time that it asked for; alone, each of two would lose to the other's."""
    bench = Bench(engines, cost_s=0.5, policy={"preview_share": 0.0})
    times = StepTimes()
    times.note_preview(bench.cost_s)
    engine = Engine(bench.model, EnginePolicy(preview_share=0.0), bench.clock, times=times, preview=bench.painter)
    engines.append(engine)
    recorders = [Recorder(bench.clock) for _ in range(2)]
    engine.submit_together("both", list(zip([("a", 4), ("b", 4)], recorders, strict=True)), preview_every=2)
    for recorder in recorders:
        recorder.wait()
    assert bench.painter.made == [("a", 2), ("b", 2)]
