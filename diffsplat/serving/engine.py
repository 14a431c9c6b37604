"""In-flight batching: one thread owns the networks, and every step runs for all active requests together.

    execute --submit--> waiting --(step boundary, a slot is free)--> active --step--> step--> ... --> finished
                           |                                           |
                           +-------- stop, cancel, deadline: dropped at the next boundary, listener.failed(error)

Requests join and leave at step boundaries, so they may be at different steps of different schedules. The engine does
not depend on diffusion or Triton: a `StepModel` starts and steps requests, a `Listener` gets the events of one request.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic

from diffsplat_client.errors import RequestCancelledError, RequestTimeoutError

from diffsplat.serving.engine_interface import (
    CANCEL_CHECK_INTERVAL_S,
    EngineClosedError,
    EnginePolicy,
    EngineProgress,
    Listener,
    QueueFullError,
    State,
    StepModel,
    Work,
)
from diffsplat.serving.engine_jobs import EarlyStops, Job

_log = logging.getLogger(__name__)


class Engine(Generic[Work, State]):
    """Runs submitted requests on a thread of its own until `close`."""

    def __init__(
        self,
        model: StepModel[Work, State],
        policy: EnginePolicy,
        clock: Callable[[], float] = time.monotonic,
        on_load: Callable[[int, int], None] = lambda active, waiting: None,
    ) -> None:
        """Start the thread.

        Args:
            model: what runs the requests.
            policy: its limits.
            clock: seconds, monotonic.
            on_load: called from the engine's thread with the numbers of active and waiting requests when they change.
        """
        self.model = model
        self.policy = policy
        self._clock = clock
        self._on_load = on_load
        self._reported: tuple[int, int] | None = None
        self._early_stops = EarlyStops(clock)
        self._changed = threading.Condition()
        self._waiting: list[Job[Work, State]] = []
        self._active: list[Job[Work, State]] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="denoise-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        request_id: str,
        work: Work,
        listener: Listener[State],
        start_by_s: float | None = None,
        end_by_s: float | None = None,
    ) -> None:
        """Queue a request; returns at once.

        Args:
            request_id: what `stop` may name.
            work: for the model.
            listener: gets the events of the request.
            start_by_s: time of the clock by which it must have been admitted, else it is given up.
            end_by_s: time of the clock by which it must have finished, else it is given up.

        Raises:
            QueueFullError, EngineClosedError: it was not accepted; the listener was not called.
        """
        job: Job[Work, State] = Job(request_id, work, listener, self._clock(), start_by_s, end_by_s)
        with self._changed:
            if self._closing:
                raise EngineClosedError
            # requests that will be admitted at the next boundary do not count as waiting
            free = max(0, self.policy.max_batch - len(self._active))
            if len(self._waiting) >= self.policy.max_queue + free:
                raise QueueFullError(f"{self.policy.max_queue} requests are already waiting: try again later")
            job.stopped = self._early_stops.take(request_id)
            self._waiting.append(job)
            position = len(self._waiting) - free
            if position > 0:
                self._report_position(job, position)
            self._changed.notify()

    def stop(self, request_id: str) -> int:
        """Stop every request of this id at the next step boundary; returns how many there were.

        If there is no such request, one that arrives within `EARLY_STOP_S` (`engine_jobs`) is stopped.
        """
        with self._changed:
            jobs = [job for job in (*self._waiting, *self._active) if job.request_id == request_id]
            for job in jobs:
                job.stopped = True
            if not jobs:
                self._early_stops.remember(request_id)
            self._changed.notify()
        return len(jobs)

    def close(self, timeout_s: float = 10.0) -> None:
        """Fail what is left and end the thread after the step it is in."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    @property
    def closing(self) -> bool:
        """Whether `close` was called."""
        return self._closing

    @property
    def load(self) -> tuple[int, int]:
        """Requests active and waiting."""
        with self._changed:
            return len(self._active), len(self._waiting)

    # --- the engine's thread ---

    def _run(self) -> None:
        while True:
            self._report_load()
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self._active)
                if self._closing:
                    left = [*self._active, *self._waiting]
                    self._active, self._waiting = [], []
                    break
            self._drop_ended()
            self._admit()
            self._report_load()
            self._step_all()
        for job in left:
            self._fail(job, EngineClosedError())

    def _report_load(self) -> None:
        load = self.load
        if load != self._reported:
            self._reported = load
            try:
                self._on_load(*load)
            except Exception:  # a gauge that cannot be set must not end the requests
                _log.exception("the load %s could not be reported", load)

    def _drop_ended(self) -> None:
        with self._changed:
            jobs = [*self._waiting, *self._active]
        gone = {id(job): error for job in jobs if (error := self._reason_to_drop(job)) is not None}
        with self._changed:
            self._waiting = [job for job in self._waiting if id(job) not in gone]
            self._active = [job for job in self._active if id(job) not in gone]
        for job in jobs:
            if id(job) in gone:
                self._fail(job, gone[id(job)])

    def _reason_to_drop(self, job: Job[Work, State]) -> Exception | None:
        if job.stopped or self._asked_to_cancel(job):
            return RequestCancelledError("the request was cancelled")
        now = self._clock()
        if job.end_by_s is not None and now >= job.end_by_s:
            done = f"after {job.state.step} of {job.state.steps} steps" if job.state else "while the request waited"
            return RequestTimeoutError(f"deadline_s passed {done}")
        if job.state is None and job.start_by_s is not None and now >= job.start_by_s:
            return RequestTimeoutError("start_deadline_s passed while the request waited")
        return None

    def _asked_to_cancel(self, job: Job[Work, State]) -> bool:
        now = self._clock()
        if now - job.asked_s < CANCEL_CHECK_INTERVAL_S:
            return False
        job.asked_s = now
        return job.listener.is_cancelled()

    def _admit(self) -> None:
        with self._changed:
            free = self.policy.max_batch - len(self._active)
            admitted, self._waiting = self._waiting[:free], self._waiting[free:]
            self._active += admitted
            for position, job in enumerate(self._waiting, start=1):
                if (
                    position != job.reported_position
                    and self._clock() - job.reported_s >= self.policy.progress_interval_s
                ):
                    self._report_position(job, position)
        for job in admitted:
            job.started_s = self._clock()
            try:
                job.state = self.model.start(job.work)
            except Exception as error:
                self._drop(job, error)

    def _step_all(self) -> None:
        jobs = list(self._active)
        if not jobs:
            return
        for job, error in self._step(jobs):
            self._drop(job, error)
        for job in jobs:
            if job in self._active:
                self._after_step(job)

    def _step(self, jobs: list[Job[Work, State]]) -> list[tuple[Job[Work, State], Exception]]:
        """One step of all jobs. If the batch fails, each job is tried alone, so that only the faulty ones fail."""
        try:
            self.model.step([job.state for job in jobs if job.state is not None])
            return []
        except Exception as error:
            if len(jobs) == 1:
                return [(jobs[0], error)]
            _log.warning("a step of %d requests failed (%s): trying them one by one", len(jobs), error)
            return [failure for job in jobs for failure in self._step([job])]

    def _after_step(self, job: Job[Work, State]) -> None:
        state = job.state
        assert state is not None
        now = self._clock()
        last = state.step >= state.steps
        try:
            if state.step == 1 or now - job.reported_s >= self.policy.progress_interval_s:
                job.reported_s = now
                seconds_left = (now - job.started_s) / state.step * (state.steps - state.step)
                job.listener.progress(EngineProgress("denoising", state.step, state.steps, 0, round(seconds_left, 3)))
            if last:
                with self._changed:
                    self._active.remove(job)
                job.listener.finished(state, (now - job.started_s) * 1e3, (job.started_s - job.submitted_s) * 1e3)
        except Exception as error:
            self._drop(job, error)

    def _report_position(self, job: Job[Work, State], position: int) -> None:
        job.reported_s, job.reported_position = self._clock(), position
        try:
            job.listener.progress(EngineProgress("queued", queue_position=position))
        except Exception as error:  # its failure is reported when it is dropped, at the next boundary
            _log.warning("the queue position of request %s could not be reported: %s", job.request_id, error)
            job.stopped = True

    def _drop(self, job: Job[Work, State], error: Exception) -> None:
        with self._changed:
            self._active = [other for other in self._active if other is not job]
        self._fail(job, error)

    def _fail(self, job: Job[Work, State], error: Exception) -> None:
        try:
            job.listener.failed(error)
        except Exception:  # the client cannot be reached; the other requests must go on
            _log.exception("the failure of request %s could not be reported (%s)", job.request_id, error)
