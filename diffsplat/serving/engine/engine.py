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

from diffsplat_client.errors import InvalidRequestError, RequestCancelledError, RequestTimeoutError

from diffsplat.serving.engine.forecast import Forecast, Outlook, StepTimes
from diffsplat.serving.engine.interface import (
    CANCEL_CHECK_INTERVAL_S,
    EngineClosedError,
    EngineLoad,
    EngineObserver,
    Listener,
    QueueFullError,
    State,
    StepModel,
    Work,
    early_end_state,
)
from diffsplat.serving.engine.jobs import EARLY_STOP_S, ENDED_KEPT_S, MAX_EARLY_STOPS, MAX_ENDED, Job, RecentIds
from diffsplat.serving.engine.policy import EnginePolicy
from diffsplat.serving.engine.previews import Previews
from diffsplat.serving.engine.reports import ProgressReports
from diffsplat.serving.engine.schedule import Plan, Schedule, Task

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
        self._outlook = Outlook(policy, self._times, clock)
        self._schedule = Schedule(policy, self._times.step_s)
        self._previews = Previews(preview, policy, self._times, clock)
        self._early_stops = RecentIds(clock, EARLY_STOP_S, MAX_EARLY_STOPS)
        self._ended = RecentIds(clock, ENDED_KEPT_S, MAX_ENDED)
        self._changed = threading.Condition()
        self._jobs: list[Job[Work, State]] = []  # in order of arrival
        self._batch: list[Job[Work, State]] = []  # those of the present step
        self._arrivals = 0
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
            self._check_queue(len(works))
            times_s, request = (self._clock(), start_by_s, end_by_s), self._arrivals
            stopped = self._early_stops.take(request_id)
            jobs: list[Job[Work, State]] = []
            for (work, listener), size in zip(works, sizes, strict=True):
                task = Task(self._arrivals, priority, size.rows, size.steps, request=request)
                self._arrivals += 1
                jobs.append(Job(request_id, task, work, listener, *times_s, preview_every, stopped=stopped))
            self._jobs += jobs
            queue = self._queue()
            for job in jobs:
                if (position := queue.get(job.task.arrival, 0)) > 0:
                    self._reports.tell_place(job, position, self._outlook.of(self._tasks()).get(job.task.arrival))
            self._changed.notify()

    def stop(self, request_id: str) -> str:
        """Stop every request of this id at the next step boundary; one of contract.STOP_ANSWERS.

        If there is no such request, one that arrives within `EARLY_STOP_S` (`jobs.py`) is stopped.
        """
        with self._changed:
            jobs = [job for job in self._jobs if job.request_id == request_id]
            for job in jobs:
                job.stopped = True
            self._changed.notify()
            if jobs:
                return "requested"
            if self._ended.has(request_id):
                return "already_finished"
            self._early_stops.note(request_id)
            return "not_found"

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
            started = sum(job.task.started for job in self._jobs)
            active = len(self._batch)
            return EngineLoad(active, started - active, len(self._jobs) - started)

    # --- with the lock ---

    def _check_queue(self, count: int) -> None:
        """QueueFullError if more would wait than may; those that are started at the next boundary do not count."""
        started = sum(job.task.started for job in self._jobs)
        waiting = len(self._jobs) - started
        if waiting + count > self.policy.max_queue + max(0, self.policy.max_batch - started):
            starts = [soon.to_start for soon in self._outlook.of(self._tasks()).values() if soon.to_start > 0]
            hint = max(min(starts), 0.1) if starts else None
            raise QueueFullError(f"{self.policy.max_queue} requests are already waiting: try again later", hint)

    def _tasks(self) -> list[Task]:
        return [job.task for job in self._jobs]

    def _locked_tasks(self) -> list[Task]:
        with self._changed:
            return self._tasks()

    def _queue(self) -> dict[int, int]:
        """Places in the queue, from 1, by arrival: of those that neither run nor will at the next boundary."""
        tasks = self._tasks()
        next_ones = {task.arrival for task in self._schedule.plan(tasks).batch}
        waiting = [task for task in tasks if not task.started and task.arrival not in next_ones]
        return {view.task.arrival: place for place, view in enumerate(self._schedule.ranked(waiting), start=1)}

    def _report_idle(self) -> None:
        """Tell those that wait their places and those that pause their time, when either has changed."""
        idle = [job for job in self._jobs if job not in self._batch and self._reports.is_due(job)]
        if not idle:
            return
        queue, soon = self._queue(), self._outlook.of(self._tasks())
        for job in idle:
            arrival = job.task.arrival
            if job.task.started:
                self._reports.tell_pause(job, soon.get(arrival))
            elif arrival in queue and self._reports.has_news(job, queue[arrival], soon.get(arrival)):
                self._reports.tell_place(job, queue[arrival], soon.get(arrival))

    # --- the engine's thread ---

    def _run(self) -> None:
        while True:
            self._report_load()
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._jobs)
                if self._closing:
                    break
            self._drop_ended()
            plan = self._begin_step()
            self._report_load()
            self._step_all(plan)
        for job in list(self._jobs):
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
            jobs = list(self._jobs)
        for job in jobs:
            if (error := self._reason_to_drop(job)) is not None:
                self._drop(job, error)

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

    def _begin_step(self) -> Plan:
        """Choose the batch, start who is new in it, and tell the others where they stand."""
        with self._changed:
            tasks = self._tasks()
            plan = self._schedule.plan(tasks)
            plan.begin(tasks)
            chosen = {task.arrival for task in plan.batch}
            self._batch = [job for job in self._jobs if job.task.arrival in chosen]
            self._report_idle()
        for job in self._batch:
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
        jobs = [job for job in self._batch if job.state is not None]
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
            plan.note_yielding(self._tasks(), seconds)
        self._tell(lambda observer: observer.stepped(len(jobs), seconds))
        for job, error in failures:
            self._drop(job, error)
        due = sorted((job for job in jobs if job in self._batch), key=self._previews.is_due)  # who waits for one, last
        with self._changed:
            soon = self._outlook.of(self._tasks()) if any(map(self._reports.is_due, due)) else {}
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
            self._jobs = [other for other in self._jobs if other is not job]
            self._batch = [other for other in self._batch if other is not job]
            self._ended.note(job.request_id)
