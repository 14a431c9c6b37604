"""Which previews are made: a preview stops the engine, and so every request in it, for as long as it takes.

A preview of a request is made if it adds

    to each other request, with all previews of others before it,   at most preview_share * alone_s
    to its own request, with all of its own before it,              at most preview_own_share * step * step_s(rows)

where alone_s is what all steps of that request take alone (`schedule.py`). So previews of others make no request
slower than by preview_share, but for the one that is being made when it arrives, and those of a slow decoder become
rarer by themselves. What a preview takes is measured; those that do not fit are skipped, and counted.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from diffsplat.serving.engine.forecast import StepTimes
from diffsplat.serving.engine.jobs import Job
from diffsplat.serving.engine.policy import EnginePolicy
from diffsplat.serving.engine.schedule import Task

_log = logging.getLogger(__name__)


class Previews:
    """Makes previews within the rule above. In the engine's thread.

    Args:
        make: what a request would give now; None: nothing is made.
        policy, times, clock: those of the engine.
    """

    def __init__(
        self,
        make: Callable[[Any], object] | None,
        policy: EnginePolicy,
        times: StepTimes,
        clock: Callable[[], float],
    ) -> None:
        self._make, self._policy, self._times, self._clock = make, policy, times, clock

    def is_due(self, job: Job[Any, Any]) -> bool:
        """Whether its client is to get one after the step that it has made; after the last one it gets the result."""
        task = job.task
        return bool(job.preview_every) and task.step % job.preview_every == 0 and task.steps_left > 0

    def make(self, job: Job[Any, Any], tasks: Callable[[], Sequence[Task]]) -> object | None:
        """The preview of a request, None if it is skipped; counts either. `tasks` gives all that are in the engine."""
        preview = None
        if self._make is not None and self._allows(job.task, tasks()):
            began_s = self._clock()
            try:
                preview = self._make(job.state)
            except Exception as error:  # the request itself may well end right
                _log.warning("a preview of request %s failed: %s", job.request_id, error)
            self._note(job.task, tasks(), self._clock() - began_s)
        job.previews += preview is not None
        job.previews_skipped += preview is None
        return preview

    def _allows(self, task: Task, tasks: Sequence[Task]) -> bool:
        cost_s, step_s = self._times.preview_s, self._times.step_s
        own_s = self._policy.preview_own_share * task.step * step_s(task.rows)
        return task.previewed_s + cost_s <= own_s and all(
            other.delayed_s + cost_s <= self._policy.preview_share * other.steps * step_s(other.rows)
            for other in tasks
            if other.request != task.request
        )

    def _note(self, task: Task, tasks: Sequence[Task], seconds: float) -> None:
        self._times.note_preview(seconds)
        task.previewed_s += seconds
        for other in tasks:
            if other.request != task.request:
                other.delayed_s += seconds
