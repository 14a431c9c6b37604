"""In-flight batching: one thread owns the networks, and every step runs for all requests whose turn it is together.

    execute --submit--> waiting --(first step)--> active <--> paused --(last step)--> finished
                           |                         |           |
                           +-- stop, cancel, deadline: dropped at the next boundary, listener.failed(error)

Requests join, pause and leave at step boundaries, so they may be at different steps of different schedules. Whose turn
it is says `schedule.py`. The engine does not depend on diffusion or Triton: a `StepModel` starts and steps requests, a
`Listener` gets the events of one request.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic

from diffsplat_client.errors import InvalidRequestError

from diffsplat.serving.engine.early_ends import reason_to_drop
from diffsplat.serving.engine.forecast import Forecast, StepTimes
from diffsplat.serving.engine.interface import (
    EngineClosedError,
    EngineLoad,
    EngineObserver,
    Listener,
    State,
    StepModel,
    Work,
    early_end_state,
)
from diffsplat.serving.engine.jobs import Job
from diffsplat.serving.engine.policy import EnginePolicy
from diffsplat.serving.engine.previews import Previews
from diffsplat.serving.engine.reports import ProgressReports
from diffsplat.serving.engine.roster import Roster
from diffsplat.serving.engine.schedule import Plan, Task

_log = logging.getLogger(__name__)


class Engine(Generic[Work, State]):
    """Runs submitted requests on a thread of its own until `close`."""

    def __init__(
        self,
        model: StepModel[Work, State],
        policy: EnginePolicy,
        clock: Callable[[], float] = time.monotonic,
        observer: EngineObserver | None = None,
        times: StepTimes | None = None,
        preview: Callable[[State], object] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            model: what runs the requests.
            policy: its limits and its order.
            clock: seconds, monotonic.
            observer: is told what happens, for metrics.
            times: what is known of the model's speed, from its warm-up.
            preview: what a request would give now, for its listener; called in the thread. None: there are no previews.
        """
        self.model = model
        self.policy = policy
        self._clock = clock
        self._observer = observer or EngineObserver()
        self._reports = ProgressReports(policy.progress_interval_s, clock)
        self._reported_load: EngineLoad | None = None
        self._times = times or StepTimes()
        self._roster: Roster[Work, State] = Roster(policy, self._times, clock)
        self._previews = Previews(preview, policy, self._times, clock)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="denoise-engine", daemon=True)
        self._thread.start()

    def submit(self, request_id: str, work: Work, listener: Listener[State], **options: Any) -> None:
        """`submit_together` of one."""
        self.submit_together(request_id, [(work, listener)], **options)

    def submit_together(
        self,
        request_id: str,
        works: Sequence[tuple[Work, Listener[State]]],
        *,
        priority: int = 0,
        start_by_s: float | None = None,
        end_by_s: float | None = None,
        preview_every: int = 0,
    ) -> None:
        """Queue works of one request, all of them or none; returns at once.

        Args:
            request_id: what `stop` may name.
            works: each for the model, and who gets its events.
            priority: the higher goes first.
            start_by_s: time of the clock by which it must have been started, else it is given up.
            end_by_s: time of the clock by which it must have finished, else it is given up.
            preview_every: steps after which a preview is due; 0: never.

        Raises:
            QueueFullError, EngineClosedError: they were not accepted; no listener was called.
            InvalidRequestError: there are more than could ever be.
        """
        if len(works) > self.policy.max_queue + self.policy.max_batch:
            most = self.policy.max_queue + self.policy.max_batch
            raise InvalidRequestError(f"num_seeds = {len(works)}: must be at most {most} for this server")
        sizes = [self.model.size(work) for work, _ in works]
        with self._changed:
            if self._closing:
                raise EngineClosedError
            self._roster.check_room(len(works))
            jobs = self._roster.enter(
                request_id,
                works,
                sizes,
                priority=priority,
                start_by_s=start_by_s,
                end_by_s=end_by_s,
                preview_every=preview_every,
            )
            places = self._roster.places()
            for job in jobs:
                if (arrival := job.task.arrival) in places:
                    self._reports.tell_place(job, places[arrival], self._roster.forecasts().get(arrival))
            self._changed.notify()

    def stop(self, request_id: str) -> str:
        """Stop every request of this id at the next step boundary; one of contract.STOP_ANSWERS.

        If there is no such request, one that arrives within `EARLY_STOP_S` (`jobs.py`) is stopped.
        """
        with self._changed:
            self._changed.notify()
            return self._roster.stop(request_id)

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
    def load(self) -> EngineLoad:
        """Requests by what they do."""
        with self._changed:
            return self._roster.load

    # --- the engine's thread ---

    def _run(self) -> None:
        while True:
            self._report_load()
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._roster.jobs)
                if self._closing:
                    break
            self._drop_ended()
            plan = self._begin_step()
            self._report_load()
            self._step_all(plan)
        for job in list(self._roster.jobs):
            self._drop(job, EngineClosedError())

    def _report_load(self) -> None:
        load = self.load
        if load != self._reported_load:
            self._reported_load = load
            self._tell(lambda observer: observer.load(load))

    def _tell(self, event: Callable[[EngineObserver], None]) -> None:
        try:
            event(self._observer)
        except Exception:  # a metric that cannot be set must not end the requests
            _log.exception("a metric could not be reported")

    def _drop_ended(self) -> None:
        with self._changed:
            jobs = list(self._roster.jobs)
        for job in jobs:
            if (error := reason_to_drop(job, self._clock())) is not None:
                self._drop(job, error)

    def _begin_step(self) -> Plan:
        """Choose the batch, start who is new in it, and tell the others where they stand."""
        with self._changed:
            plan = self._roster.begin_step()
            self._reports.tell_idle(self._roster)
        for job in self._roster.batch:
            if job.state is None:
                self._start(job)
        return plan

    def _start(self, job: Job[Work, State]) -> None:
        job.started_s = self._clock()
        self._tell(lambda observer: observer.started(job.started_s - job.submitted_s))
        try:
            job.state = self.model.start(job.work)
        except Exception as error:
            self._drop(job, error)
            return
        self._times.note_start(self._clock() - job.started_s)
        with self._changed:
            job.task.steps = job.state.steps

    def _step_all(self, plan: Plan) -> None:
        jobs = [job for job in self._roster.batch if job.state is not None]
        if not jobs:
            return
        began_s = self._clock()
        failures = self._step(jobs)
        seconds = self._clock() - began_s
        with self._changed:
            if not failures:
                self._times.note_step(sum(job.task.rows for job in jobs), seconds)
            for job in jobs:
                assert job.state is not None
                job.task.step = job.state.step
            plan.note_yielding(self._roster.tasks, seconds)
        self._tell(lambda observer: observer.stepped(len(jobs), seconds))
        for job, error in failures:
            self._drop(job, error)
        due = [job for job in jobs if job in self._roster.batch]
        due.sort(key=self._previews.is_due)  # who waits for a preview, last
        with self._changed:
            soon = self._roster.forecasts() if any(map(self._reports.is_due, due)) else {}
        for job in due:
            self._after_step(job, soon.get(job.task.arrival))

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

    def _after_step(self, job: Job[Work, State], soon: Forecast | None) -> None:
        state = job.state
        assert state is not None
        now = self._clock()
        if state.step == 1:
            self._tell(lambda observer: observer.progressed(now - job.submitted_s))
        try:
            preview = None
            if self._previews.is_due(job):
                preview = self._previews.make(job, self._locked_tasks)
                self._tell(lambda observer: observer.previewed(preview is not None))
            if preview is not None or self._reports.is_due(job):
                self._reports.tell_progress(job, soon, preview)
            if state.step >= state.steps:
                self._forget(job)
                job.listener.finished(state, (now - job.started_s) * 1e3, (job.started_s - job.submitted_s) * 1e3)
                self._tell(lambda observer: observer.ended("finished", now - job.submitted_s))
        except Exception as error:
            self._drop(job, error)

    def _drop(self, job: Job[Work, State], error: Exception) -> None:
        self._forget(job)
        end_state = early_end_state(error, started=job.state is not None)
        try:
            job.listener.failed(error, end_state)
        except Exception:  # the client cannot be reached; the other requests must go on
            _log.exception("the failure of request %s could not be reported (%s)", job.request_id, error)
        self._tell(lambda observer: observer.ended(end_state, self._clock() - job.submitted_s))

    def _forget(self, job: Job[Work, State]) -> None:
        with self._changed:
            self._roster.forget(job)

    def _locked_tasks(self) -> list[Task]:
        with self._changed:
            return self._roster.tasks
