"""The engine without Triton and without a network: batching, starting, stopping, isolation of failures, shutdown."""

import re
import threading
import time

import pytest
from diffsplat_client.errors import InvalidRequestError, RequestCancelledError, RequestTimeoutError

from diffsplat.serving.engine.engine import Engine
from diffsplat.serving.engine.interface import (
    CANCEL_CHECK_INTERVAL_S,
    EngineClosedError,
    EngineLoad,
    EngineObserver,
    EngineProgress,
    QueueFullError,
)
from diffsplat.serving.engine.jobs import EARLY_STOP_S, ENDED_KEPT_S, MAX_EARLY_STOPS, RecentIds
from diffsplat.serving.engine.policy import EnginePolicy
from tests.serving.engine_fakes import Clock, CountingModel, Recorder, TimedModel
from tests.serving.processes import TIMEOUT_S


def start(engines: list[Engine], model: CountingModel, clock: Clock | None = None, **policy: float) -> Engine:
    """An engine that starts no more requests than run together, and pauses none, unless told otherwise."""
    limits = {"max_batch": 2, "max_queue": 2, "early_starts": 0, "overtaking": 0, "max_stretch": 1e9}
    policy = {**limits, "progress_interval_s": 0.0, **policy}
    engine = Engine(model, EnginePolicy(**policy), clock or time.monotonic)
    engines.append(engine)
    return engine


def submit(engine: Engine, name: str, steps: int) -> Recorder:
    recorder = Recorder()
    engine.submit(name, (name, steps), recorder)
    return recorder


def test_one_request_runs_every_step_and_tells_each(engines: list[Engine]) -> None:
    recorder = submit(start(engines, CountingModel()), "a", 5).wait()
    assert recorder.result is not None and recorder.result.step == 5
    assert [(p.phase, p.step, p.steps) for p in recorder.progressed] == [("denoising", k, 5) for k in range(1, 6)]
    assert recorder.progressed[-1].seconds_left == 0.0


def test_progress_is_throttled_but_the_first_step_is_told(engines: list[Engine]) -> None:
    recorder = submit(start(engines, CountingModel(), progress_interval_s=1e6), "a", 50).wait()
    assert [p.step for p in recorder.progressed] == [1]
    assert recorder.result is not None and recorder.result.step == 50  # the result itself tells of the last


def test_a_request_joins_and_leaves_at_step_boundaries(engines: list[Engine]) -> None:
    model = CountingModel(gate=threading.Semaphore(0))
    engine = start(engines, model)
    a = submit(engine, "a", 4)
    assert model.entered.acquire(timeout=TIMEOUT_S)  # a's first step is running
    b = submit(engine, "b", 2)
    model.gate.release(100)
    a.wait()
    b.wait()
    assert model.batches == [["a"], ["a", "b"], ["a", "b"], ["a"]]


def test_waiting_requests_are_admitted_in_order_and_told_their_place(engines: list[Engine]) -> None:
    model = CountingModel(gate=threading.Semaphore(0))
    engine = start(engines, model, max_batch=1)
    recorders = [submit(engine, "a", 1)]
    assert model.entered.acquire(timeout=TIMEOUT_S)
    recorders += [submit(engine, name, 1) for name in "bc"]
    assert [r.progressed[0].queue_position for r in recorders[1:]] == [1, 2]
    assert engine.load == EngineLoad(active=1, paused=0, waiting=2)
    with pytest.raises(QueueFullError, match="2 requests are already waiting"):
        submit(engine, "d", 1)
    model.gate.release(100)
    for recorder in recorders:
        recorder.wait()
    assert model.batches == [["a"], ["b"], ["c"]]
    assert [p.queue_position for p in recorders[2].progressed] == [2, 1, 0]  # moved up, then ran


@pytest.mark.parametrize("by_stop", [True, False], ids=["stop", "cancel"])
def test_an_ended_request_leaves_within_one_step_and_others_go_on(engines: list[Engine], by_stop: bool) -> None:
    model, clock = CountingModel(gate=threading.Semaphore(0)), Clock()
    engine = start(engines, model, clock)
    a, b = submit(engine, "a", 100), submit(engine, "b", 3)
    assert model.entered.acquire(timeout=TIMEOUT_S)
    if by_stop:
        assert engine.stop("a") == "requested"
    else:
        a.cancelled = True
        clock.now_s += 2 * CANCEL_CHECK_INTERVAL_S  # listeners are asked no more often
    model.gate.release(1000)
    assert isinstance(a.wait().error, RequestCancelledError) and a.end_state == "cancelled"
    assert b.wait().result is not None
    assert sum("a" in batch for batch in model.batches) <= 1  # no more than the step that was running


def test_a_waiting_request_can_be_stopped(engines: list[Engine]) -> None:
    model = CountingModel(gate=threading.Semaphore(0))
    engine = start(engines, model, max_batch=1)
    a, b = submit(engine, "a", 2), submit(engine, "b", 2)
    assert model.entered.acquire(timeout=TIMEOUT_S)
    assert engine.stop("b") == "requested" and engine.stop("nobody") == "not_found"
    model.gate.release(100)
    assert isinstance(b.wait().error, RequestCancelledError) and b.end_state == "aborted"
    assert a.wait().result is not None
    assert not any("b" in batch for batch in model.batches)


def test_a_stop_that_overtakes_its_request_stops_it(engines: list[Engine]) -> None:
    """The request may still be in `encode` when its STOP reaches `denoise`."""
    clock = Clock()
    engine = start(engines, CountingModel(), clock)
    assert engine.stop("early") == "not_found"
    clock.now_s += 0.9 * EARLY_STOP_S
    assert submit(engine, "early", 3).wait().end_state == "aborted"
    assert submit(engine, "early", 3).wait().result is not None, "a STOP counts once"
    assert engine.stop("late") == "not_found"
    clock.now_s += 1.1 * EARLY_STOP_S
    assert submit(engine, "late", 3).wait().result is not None
    for i in range(MAX_EARLY_STOPS + 1):
        engine.stop(str(i))
    assert submit(engine, "0", 1).wait().result is not None, "forgotten for a newer one"
    assert isinstance(submit(engine, "1", 1).wait().error, RequestCancelledError)


@pytest.mark.parametrize("limit", ["start_by_s", "end_by_s"])
def test_a_request_that_is_too_late_costs_no_step(engines: list[Engine], limit: str) -> None:
    model, clock = CountingModel(gate=threading.Semaphore(0)), Clock()
    engine = start(engines, model, clock, max_batch=1)
    a = submit(engine, "a", 2)
    assert model.entered.acquire(timeout=TIMEOUT_S)
    late, patient = Recorder(), Recorder()
    engine.submit("late", ("late", 2), late, **{limit: clock.now_s + 1})
    engine.submit("patient", ("patient", 2), patient, **{limit: clock.now_s + 3})
    clock.now_s += 2
    model.gate.release(100)
    error = late.wait().error
    assert late.end_state == "expired"
    assert isinstance(error, RequestTimeoutError) and "passed while the request waited" in str(error)
    assert a.wait().result is not None and patient.wait().result is not None
    assert not any("late" in batch for batch in model.batches)


def test_a_running_request_ends_at_its_deadline_not_at_that_of_its_start(engines: list[Engine]) -> None:
    model, clock = CountingModel(gate=threading.Semaphore(0)), Clock()
    engine = start(engines, model, clock)
    a, b = Recorder(), Recorder()
    engine.submit("a", ("a", 100), a, end_by_s=clock.now_s + 1)
    assert model.entered.acquire(timeout=TIMEOUT_S)
    engine.submit("b", ("b", 2), b, start_by_s=clock.now_s + 1)
    model.gate.release(1)
    assert model.entered.acquire(timeout=TIMEOUT_S)  # now both run
    clock.now_s += 2
    model.gate.release(100)
    error = a.wait().error
    assert a.end_state == "expired"
    assert isinstance(error, RequestTimeoutError) and re.search("deadline_s passed after [12] of 100 steps", str(error))
    assert b.wait().result is not None


class Watcher(EngineObserver):
    """Records what an observer is told; breaks when the engine is idle again."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.loads: list[EngineLoad] = []
        self.told: list[tuple[str, float]] = []
        self.idle = threading.Event()

    def load(self, load: EngineLoad) -> None:
        self.loads.append(load)
        if len(self.loads) > 1 and load == EngineLoad():
            self.idle.set()
            raise RuntimeError("a gauge that cannot be set")

    def stepped(self, requests: int, seconds: float) -> None:
        self.told.append((f"step of {requests}", seconds))

    def started(self, queued_s: float) -> None:
        self.told.append(("started", queued_s))

    def progressed(self, seconds: float) -> None:
        self.told.append(("progressed", seconds))

    def ended(self, end_state: str, seconds: float) -> None:
        self.told.append((end_state, seconds))


def test_the_observer_is_told_the_load_and_the_times(engines: list[Engine]) -> None:
    model = TimedModel(clock=Clock(), cost_s=lambda requests: 2.0 * requests)
    watcher = Watcher(model.clock)
    engine = Engine(model, EnginePolicy(), model.clock, watcher)
    engines.append(engine)
    submit(engine, "a", 3).wait()
    assert watcher.idle.wait(TIMEOUT_S)
    assert watcher.loads == [EngineLoad(), EngineLoad(active=1), EngineLoad()]
    assert watcher.told == [
        *[("started", 0.0), ("step of 1", 2.0), ("progressed", 2.0)],
        *[("step of 1", 2.0), ("step of 1", 2.0), ("finished", 6.0)],
    ]
    assert submit(engine, "b", 1).wait().result is not None, "the thread lives on"


def test_a_stop_is_told_what_became_of_the_request(engines: list[Engine]) -> None:
    clock = Clock()
    engine = start(engines, CountingModel(), clock)
    submit(engine, "a", 1).wait()
    assert engine.stop("a") == "already_finished"
    assert submit(engine, "a", 1).wait().result is not None, "a late STOP stops no other request of this id"
    clock.now_s += 1.1 * ENDED_KEPT_S
    assert engine.stop("a") == "not_found"


def test_ids_are_remembered_for_a_while_and_not_too_many() -> None:
    clock = Clock()
    ids = RecentIds(clock, kept_s=10.0, max_ids=2)
    for name in ("a", "b", "c", ""):
        ids.note(name)
    assert [ids.has(name) for name in ("a", "b", "c", "")] == [False, True, True, False]
    clock.now_s += 9
    ids.note("b")
    clock.now_s += 2
    assert [ids.has(name) for name in "bc"] == [True, False]
    assert ids.take("b") and not ids.take("b")


def test_requests_without_an_id_cannot_be_stopped_by_one_another(engines: list[Engine]) -> None:
    engine = start(engines, CountingModel())
    submit(engine, "", 1).wait()
    assert engine.stop("") == "not_found"
    assert submit(engine, "", 1).wait().result is not None


def test_failures_stay_with_their_request(engines: list[Engine]) -> None:
    model = CountingModel(fail_start={"bad start"}, fail_step={"bad step": 1}, gate=threading.Semaphore(0))
    engine = start(engines, model, max_batch=3)
    good = submit(engine, "good", 4)
    assert model.entered.acquire(timeout=TIMEOUT_S)
    bad = [submit(engine, name, 4) for name in ("bad start", "bad step")]
    model.gate.release(100)
    assert "cannot start" in str(bad[0].wait().error)
    assert "fails at step 1" in str(bad[1].wait().error)
    assert good.wait().result is not None and good.result.step == 4


def test_a_listener_that_breaks_fails_its_request_alone(engines: list[Engine]) -> None:
    class Broken(Recorder):
        def progress(self, progress: EngineProgress) -> None:
            raise OSError("the stream is gone")

    model = CountingModel()
    engine = start(engines, model)
    broken = Broken()
    engine.submit("broken", ("broken", 3), broken)
    good = submit(engine, "good", 3)
    assert "the stream is gone" in str(broken.wait().error)
    assert good.wait().result is not None


def test_close_ends_running_and_waiting_requests(engines: list[Engine]) -> None:
    model = CountingModel(gate=threading.Semaphore(0))
    engine = start(engines, model, max_batch=1)
    recorders = [submit(engine, name, 100) for name in "ab"]
    assert model.entered.acquire(timeout=TIMEOUT_S)
    closer = threading.Thread(target=engine.close)
    closer.start()
    while not engine.closing:  # the step that runs ends only after that
        time.sleep(0.001)
    model.gate.release(1000)
    closer.join(TIMEOUT_S)
    for recorder in recorders:
        assert isinstance(recorder.wait().error, EngineClosedError)
    with pytest.raises(EngineClosedError, match="shutting down"):
        submit(engine, "late", 1)


def test_policy_comes_from_the_parameters_of_the_config() -> None:
    parameters = {"max_batch": "3", "threads": "0", "order": "arrival", "patience": "2.5"}
    assert EnginePolicy.from_parameters(parameters) == EnginePolicy(max_batch=3, order="arrival", patience=2.5)
    with pytest.raises(ValueError, match="max_queue = 'many'"):
        EnginePolicy.from_parameters({"max_queue": "many"})
    for name, value, says in (
        ("max_batch", "0", "must be >= 1"),
        ("overtake_share", "1.5", r"must be in 0 \.\. 1"),
        ("max_stretch", "nan", "must be >= 1"),
        ("order", "random", "must be one of shortest, arrival"),
    ):
        with pytest.raises(ValueError, match=f"{name} = .*{value}.*: {says}"):
            EnginePolicy.from_parameters({name: value})


class TestTogether:
    """Works of one request."""

    def test_all_are_taken_or_none(self, engines: list[Engine]) -> None:
        model = CountingModel(gate=threading.Semaphore(0))
        engine = start(engines, model)  # two run, two wait
        first = submit(engine, "first", 1)
        assert model.entered.acquire(timeout=TIMEOUT_S)
        works = [((name, 1), Recorder()) for name in "abcd"]
        with pytest.raises(QueueFullError):
            engine.submit_together("four", works)
        assert engine.load == EngineLoad(1, 0, 0)
        engine.submit_together("three", works[:3])
        model.gate.release(8)  # type: ignore[union-attr]
        for recorder in (first, *(recorder for _, recorder in works[:3])):
            assert recorder.wait().result is not None
        assert not works[3][1].over.is_set()

    def test_more_than_could_ever_be_are_an_error(self, engines: list[Engine]) -> None:
        engine = start(engines, CountingModel())
        with pytest.raises(InvalidRequestError, match="num_seeds = 5: must be at most 4 for this server"):
            engine.submit_together("many", [((name, 1), Recorder()) for name in "abcde"])

    def test_a_stop_ends_all_of_them(self, engines: list[Engine]) -> None:
        model = CountingModel(gate=threading.Semaphore(0))
        engine = start(engines, model)
        works = [((name, 100), Recorder()) for name in "abc"]
        engine.submit_together("three", works)
        assert model.entered.acquire(timeout=TIMEOUT_S)
        assert engine.stop("three") == "requested"
        model.gate.release(100)  # type: ignore[union-attr]
        assert [recorder.wait().end_state for _, recorder in works] == ["cancelled", "cancelled", "aborted"]

    def test_a_stop_that_came_first_stops_all_of_them(self, engines: list[Engine]) -> None:
        engine = start(engines, CountingModel())
        assert engine.stop("early") == "not_found"
        works = [((name, 3), Recorder()) for name in "ab"]
        engine.submit_together("early", works)
        assert {recorder.wait().end_state for _, recorder in works} == {"aborted"}
