"""Which requests an engine has, which of them make the present step, and which it remembers."""

from collections.abc import Callable, Sequence
from typing import Generic

from diffsplat.serving.engine.forecast import Forecast, Outlook, StepTimes
from diffsplat.serving.engine.interface import EngineLoad, Listener, QueueFullError, State, Work
from diffsplat.serving.engine.jobs import EARLY_STOP_S, ENDED_KEPT_S, MAX_EARLY_STOPS, MAX_ENDED, Job, RecentIds
from diffsplat.serving.engine.policy import EnginePolicy
from diffsplat.serving.engine.schedule import Plan, Schedule, Task
from diffsplat.stages.work_size import WorkSize


class Roster(Generic[Work, State]):
    """The requests that have not ended. Guarded by the engine's lock.

    Args:
        policy, times, clock: those of the engine.

    Attributes:
        jobs: all of them, in order of arrival.
        batch: those of the present step.
    """

    def __init__(self, policy: EnginePolicy, times: StepTimes, clock: Callable[[], float]) -> None:
        self.jobs: list[Job[Work, State]] = []
        self.batch: list[Job[Work, State]] = []
        self._policy = policy
        self._clock = clock
        self._outlook = Outlook(policy, times, clock)
        self._schedule = Schedule(policy, times.step_s)
        self._early_stops = RecentIds(clock, EARLY_STOP_S, MAX_EARLY_STOPS)
        self._ended = RecentIds(clock, ENDED_KEPT_S, MAX_ENDED)
        self._arrivals = 0

    @property
    def load(self) -> EngineLoad:
        """Requests by what they do."""
        started = sum(job.task.started for job in self.jobs)
        active = len(self.batch)
        return EngineLoad(active, started - active, len(self.jobs) - started)

    @property
    def tasks(self) -> list[Task]:
        """Their parts in the schedule, in order of arrival."""
        return [job.task for job in self.jobs]

    def forecasts(self) -> dict[int, Forecast]:
        """When each starts and finishes, by arrival; see `Outlook.of`."""
        return self._outlook.of(self.tasks)

    def places(self) -> dict[int, int]:
        """Places in the queue, from 1, by arrival: of those that neither run nor will at the next boundary."""
        tasks = self.tasks
        next_ones = {task.arrival for task in self._schedule.plan(tasks).batch}
        waiting = [task for task in tasks if not task.started and task.arrival not in next_ones]
        return {view.task.arrival: place for place, view in enumerate(self._schedule.ranked(waiting), start=1)}

    def check_room(self, count: int) -> None:
        """QueueFullError if more would wait than may; those that are started at the next boundary do not count."""
        started = sum(job.task.started for job in self.jobs)
        waiting = len(self.jobs) - started
        if waiting + count > self._policy.max_queue + max(0, self._policy.max_batch - started):
            starts = [soon.to_start for soon in self.forecasts().values() if soon.to_start > 0]
            hint = max(min(starts), 0.1) if starts else None
            raise QueueFullError(f"{self._policy.max_queue} requests are already waiting: try again later", hint)

    def enter(
        self,
        request_id: str,
        works: Sequence[tuple[Work, Listener[State]]],
        sizes: Sequence[WorkSize],
        *,
        priority: int,
        start_by_s: float | None,
        end_by_s: float | None,
        preview_every: int,
    ) -> list[Job[Work, State]]:
        """Works of one request, which arrive now; `Engine.submit_together` says what they bring. `sizes` are theirs."""
        times_s, request = (self._clock(), start_by_s, end_by_s), self._arrivals
        stopped = self._early_stops.take(request_id)
        jobs: list[Job[Work, State]] = []
        for (work, listener), size in zip(works, sizes, strict=True):
            task = Task(self._arrivals, priority, size.rows, size.steps, request=request)
            self._arrivals += 1
            jobs.append(Job(request_id, task, work, listener, *times_s, preview_every, stopped=stopped))
        self.jobs += jobs
        return jobs

    def stop(self, request_id: str) -> str:
        """`Engine.stop`."""
        jobs = [job for job in self.jobs if job.request_id == request_id]
        for job in jobs:
            job.stopped = True
        if jobs:
            return "requested"
        if self._ended.has(request_id):
            return "already_finished"
        self._early_stops.note(request_id)
        return "not_found"

    def begin_step(self) -> Plan:
        """Choose the batch of the next step."""
        tasks = self.tasks
        plan = self._schedule.plan(tasks)
        plan.begin(tasks)
        chosen = {task.arrival for task in plan.batch}
        self.batch = [job for job in self.jobs if job.task.arrival in chosen]
        return plan

    def forget(self, job: Job[Work, State]) -> None:
        """It has ended."""
        self.jobs = [other for other in self.jobs if other is not job]
        self.batch = [other for other in self.batch if other is not job]
        self._ended.note(job.request_id)
