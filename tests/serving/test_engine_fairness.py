"""Who gets how much of the engine, on a driven clock: each step takes a time that depends on its batch, and no more."""

import dataclasses
import random
from functools import partial

import pytest

from diffsplat.serving.engine.engine import Engine
from diffsplat.serving.engine.forecast import StepTimes
from diffsplat.serving.engine.interface import QueueFullError
from diffsplat.serving.engine.policy import EnginePolicy, first_come_first_served
from tests.serving.engine_fakes import Clock, Recorder, TimedModel

POLICY = EnginePolicy(progress_interval_s=0.0)
COSTS = {
    "cpu": lambda requests: 0.1 + 0.9 * requests,  # batching saves a tenth
    "gpu": lambda requests: 1.0 + 0.1 * requests,  # a batch costs hardly more than one request
}
Arrivals = list[tuple[float, str, int]]  # seconds, name, steps


def measured(cost: str) -> StepTimes:
    """What a warm-up knows: one request and a full batch."""
    times = StepTimes()
    for requests in (1, POLICY.max_batch):
        times.note_step(requests, COSTS[cost](requests))
    return times


def play(
    engines: list[Engine], arrivals: Arrivals, policy: EnginePolicy, cost: str, **more: int
) -> tuple[dict[str, Recorder], TimedModel]:
    """Run requests that arrive at seconds from the start of the first one; steps, and so arrivals, are deterministic.

    Those of second 0 all arrive before the second step.
    """
    clock = Clock(0.0)
    model = TimedModel(clock=clock, cost_s=COSTS[cost])
    recorders = {name: Recorder(clock) for _, name, _ in arrivals}
    engine: Engine = Engine(model, policy, clock, times=measured(cost))
    engines.append(engine)
    (_, first, first_steps), *others = arrivals

    def submit(name: str, steps: int) -> None:
        engine.submit(name, (name, steps), recorders[name], priority=more.get(name, 0))

    model.arrivals = [(seconds, partial(submit, name, steps)) for seconds, name, steps in others]
    submit(first, first_steps)
    for recorder in recorders.values():
        recorder.wait()
    return recorders, model


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("after_s", [0.0, 10.0, 100.0])
def test_a_short_request_passes_seven_long_ones_and_hardly_delays_them(
    engines: list[Engine], cost: str, after_s: float
) -> None:
    long = [(0.0, f"long {i}", 100) for i in range(7)]
    alone_s = 4 * COSTS[cost](1)
    ours, model = play(engines, [*long, (after_s, "short", 4)], POLICY, cost)
    theirs, _ = play(engines, [*long, (after_s, "short", 4)], first_come_first_served(POLICY), cost)
    arrived_s = min(ours["short"].told_s[0], ours["short"].ended_s)
    assert ours["short"].ended_s - after_s <= 4 * alone_s
    assert theirs["short"].ended_s - after_s > 10 * alone_s, "the comparison would not have let it wait"
    assert arrived_s >= after_s
    for _, name, _ in long:
        assert ours[name].ended_s <= 1.1 * theirs[name].ended_s, name
    assert model.most_states <= POLICY.max_states


@pytest.mark.parametrize("cost", COSTS)
def test_eight_requests_make_their_first_steps_soon_and_end_no_later(engines: list[Engine], cost: str) -> None:
    arrivals = [(0.0, str(i), 20) for i in range(8)]
    ours, _ = play(engines, arrivals, POLICY, cost)
    one_by_one, _ = play(engines, arrivals, first_come_first_served(EnginePolicy(1, progress_interval_s=0)), cost)

    def first_step_s(recorder: Recorder) -> float:
        return next(s for s, progress in zip(recorder.told_s, recorder.progressed, strict=True) if progress.step == 1)

    mean_s, serial_s = (sum(map(first_step_s, run.values())) / 8 for run in (ours, one_by_one))
    assert mean_s <= 0.25 * serial_s
    assert max(r.ended_s for r in ours.values()) <= max(r.ended_s for r in one_by_one.values())


def test_a_long_request_ends_though_short_ones_keep_coming(engines: list[Engine]) -> None:
    """Short ones alone would fill the engine."""
    short = [(1.0 + 2.0 * i, f"short {i}", 2) for i in range(200)]
    recorders, _ = play(engines, [(0.0, "long", 40), *short], POLICY, "cpu")
    waited_s = recorders["long"].ended_s - 40 * COSTS["cpu"](POLICY.max_batch)
    assert waited_s <= POLICY.patience * 40 * COSTS["cpu"](1) + COSTS["cpu"](POLICY.max_batch)


def test_a_request_of_higher_priority_is_done_first(engines: list[Engine]) -> None:
    arrivals = [(0.0, str(i), 30) for i in range(9)]
    recorders, _ = play(engines, arrivals, POLICY, "cpu", **{"8": 1})
    assert recorders["8"].ended_s == min(recorder.ended_s for recorder in recorders.values())


def test_paused_requests_are_told_of_and_states_stay_bounded(engines: list[Engine]) -> None:
    draw = random.Random(1)
    arrivals = [(float(i), str(i), draw.choice((2, 20, 100))) for i in range(40)]
    recorders, model = play(engines, arrivals, dataclasses.replace(POLICY, progress_interval_s=20.0), "cpu")
    assert POLICY.max_batch < model.most_states <= POLICY.max_states
    told = [progress for recorder in recorders.values() for progress in recorder.progressed]
    assert all(progress.seconds_left is not None for progress in told)
    steps = [[progress.step for progress in recorder.progressed] for recorder in recorders.values()]
    assert all(told == sorted(told) for told in steps)
    assert any(len(told) > len(set(told)) for told in steps), "nobody was told during a pause"


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("seed", range(5))
def test_the_times_told_are_within_30_percent_of_what_happens(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch, cost: str, seed: int
) -> None:
    """Of 4 to 24 requests of 1 to 200 steps, at every message after the last arrival; steps vary by 10 %."""
    draw, vary = random.Random(seed), random.Random(seed + 100)
    steady = COSTS[cost]
    monkeypatch.setitem(COSTS, cost, lambda requests: steady(requests) * vary.uniform(0.9, 1.1))
    arrivals = [(0.0, str(i), draw.randint(1, 200)) for i in range(draw.randint(4, 24))]
    policy = dataclasses.replace(POLICY, progress_interval_s=20 * steady(POLICY.max_batch))
    recorders, _ = play(engines, arrivals, policy, cost)
    all_there_s = max(recorder.told_s[0] for recorder in recorders.values() if recorder.progressed[0].step == 0)
    good = []
    for recorder in recorders.values():
        told = list(zip(recorder.told_s, recorder.progressed, strict=True))
        first_step_s = next(seconds for seconds, progress in told if progress.step)
        for seconds, progress in told:
            if seconds <= all_there_s:
                continue
            moments = [(progress.seconds_left, recorder.ended_s)]
            if progress.phase == "queued":
                moments.append((progress.seconds_to_start, first_step_s - steady(POLICY.max_batch)))
            for said_s, happened_s in moments:
                assert said_s is not None
                really_s = happened_s - seconds
                good.append(abs(said_s - really_s) <= 0.3 * really_s + steady(POLICY.max_batch))  # and one step
    assert len(good) >= 20 and sum(good) >= 0.99 * len(good), f"{good.count(False)} of {len(good)} are not"


def test_a_full_queue_says_when_there_will_be_room(engines: list[Engine]) -> None:
    policy = EnginePolicy(max_batch=1, max_queue=1, early_starts=0, overtaking=0)
    clock = Clock(0.0)
    model = TimedModel(clock=clock, cost_s=COSTS["cpu"])
    engine: Engine = Engine(model, policy, clock, times=measured("cpu"))
    engines.append(engine)
    recorders = [Recorder(clock) for _ in range(2)]
    hints: list[float | None] = []

    def overload() -> None:
        engine.submit("1", ("1", 10), recorders[1])
        with pytest.raises(QueueFullError, match="1 requests are already waiting") as caught:
            engine.submit("2", ("2", 10), Recorder(clock))
        hints.append(caught.value.retry_after_s)

    model.arrivals = [(3.0, overload)]
    engine.submit("0", ("0", 10), recorders[0])
    for recorder in recorders:
        recorder.wait()
    assert len(hints) == 1 and hints[0] is not None
    assert 7.0 <= hints[0] <= 8.0, "seven of ten steps are left, and the one that ends now has not been counted"
