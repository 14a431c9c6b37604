"""The engine without Triton and without a network: batching, admission, stopping, isolation of failures, shutdown."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from diffsplat_client.errors import RequestCancelledError, RequestTimeoutError

from diffsplat.serving.engine import Engine
from diffsplat.serving.engine_interface import (
    CANCEL_CHECK_INTERVAL_S,
    EngineClosedError,
    EnginePolicy,
    EngineProgress,
    QueueFullError,
)
from diffsplat.serving.engine_jobs import EARLY_STOP_S, MAX_EARLY_STOPS
from tests.serving.processes import TIMEOUT_S


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


class Recorder:
    """Listens to one request."""

    def __init__(self) -> None:
        self.progressed: list[EngineProgress] = []
        self.result: Counter | None = None
        self.error: Exception | None = None
        self.over = threading.Event()
        self.cancelled = False

    def progress(self, progress: EngineProgress) -> None:
        self.progressed.append(progress)

    def finished(self, state: Counter, denoise_ms: float, queued_ms: float) -> None:
        assert denoise_ms >= 0 and queued_ms >= 0
        self.result = state
        self.over.set()

    def failed(self, error: Exception) -> None:
        assert not self.over.is_set(), "told twice"
        self.error = error
        self.over.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait(self) -> "Recorder":
        assert self.over.wait(TIMEOUT_S), "the request neither finished nor failed"
        return self


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    started: list[Engine] = []
    yield started
    for engine in started:
        engine.close()
        assert not engine._thread.is_alive()


@dataclass
class Clock:
    """Stands still until it is moved."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def start(engines: list[Engine], model: CountingModel, clock: Clock | None = None, **policy: float) -> Engine:
    policy = {"max_batch": 2, "max_queue": 2, "progress_interval_s": 0.0, **policy}
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
    assert engine.load == (1, 2)
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
        assert engine.stop("a") == 1
    else:
        a.cancelled = True
        clock.now_s += 2 * CANCEL_CHECK_INTERVAL_S  # listeners are asked no more often
    model.gate.release(1000)
    assert isinstance(a.wait().error, RequestCancelledError)
    assert b.wait().result is not None
    assert sum("a" in batch for batch in model.batches) <= 1  # no more than the step that was running


def test_a_waiting_request_can_be_stopped(engines: list[Engine]) -> None:
    model = CountingModel(gate=threading.Semaphore(0))
    engine = start(engines, model, max_batch=1)
    a, b = submit(engine, "a", 2), submit(engine, "b", 2)
    assert model.entered.acquire(timeout=TIMEOUT_S)
    assert engine.stop("b") == 1 and engine.stop("nobody") == 0
    model.gate.release(100)
    assert isinstance(b.wait().error, RequestCancelledError)
    assert a.wait().result is not None
    assert not any("b" in batch for batch in model.batches)


def test_a_stop_that_overtakes_its_request_stops_it(engines: list[Engine]) -> None:
    """The request may still be in `encode` when its STOP reaches `denoise`."""
    clock = Clock()
    engine = start(engines, CountingModel(), clock)
    assert engine.stop("early") == 0
    clock.now_s += 0.9 * EARLY_STOP_S
    assert isinstance(submit(engine, "early", 3).wait().error, RequestCancelledError)
    assert submit(engine, "early", 3).wait().result is not None, "a STOP counts once"
    assert engine.stop("late") == 0
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
    assert isinstance(error, RequestTimeoutError) and re.search("deadline_s passed after [12] of 100 steps", str(error))
    assert b.wait().result is not None


def test_the_load_is_reported_when_it_changes(engines: list[Engine]) -> None:
    loads: list[tuple[int, int]] = []
    idle = threading.Event()

    def report(active: int, waiting: int) -> None:
        loads.append((active, waiting))
        if len(loads) > 1 and loads[-1] == (0, 0):
            idle.set()
            raise RuntimeError("a gauge that cannot be set")

    engine = Engine(CountingModel(), EnginePolicy(), on_load=report)
    engines.append(engine)
    submit(engine, "a", 5).wait()
    assert idle.wait(TIMEOUT_S)
    assert loads == [(0, 0), (1, 0), (0, 0)]
    assert submit(engine, "b", 1).wait().result is not None, "the thread lives on"


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
    assert EnginePolicy.from_parameters({"max_batch": "3", "threads": "0"}) == EnginePolicy(max_batch=3)
    with pytest.raises(ValueError, match="max_queue = 'many'"):
        EnginePolicy.from_parameters({"max_queue": "many"})
    with pytest.raises(ValueError, match="max_batch must be >= 1"):
        EnginePolicy.from_parameters({"max_batch": "0"})
