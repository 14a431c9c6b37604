"""What the engine tells each request of where it stands, and how often."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from diffsplat.serving.engine.forecast import Forecast
from diffsplat.serving.engine.interface import EngineProgress
from diffsplat.serving.engine.jobs import Job
from diffsplat.serving.engine.roster import Roster

NEWS_SHARE = 0.2  # of the time until it starts, by which that time must be off to be told anew

_log = logging.getLogger(__name__)


class ProgressReports:
    """Progress messages, at most one per request and `interval_s`, but for its first step and its first place."""

    def __init__(self, interval_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._clock = clock

    def is_due(self, job: Job[Any, Any]) -> bool:
        """Whether it may be told something now; with previews also after the last step, how many were skipped."""
        counts_previews = bool(job.preview_every) and job.task.steps_left <= 0
        return job.task.step == 1 or counts_previews or self._clock() - job.reported_s >= self._interval_s

    def tell_progress(self, job: Job[Any, Any], soon: Forecast | None, preview: Any = None) -> None:
        """Of a request that has been started, perhaps with a preview; an exception of the listener is the caller's."""
        task = job.task
        left_s = 0.0 if task.steps_left <= 0 else None if soon is None else round(soon.to_finish, 3)
        job.reported_s = self._clock()
        job.listener.progress(
            EngineProgress(
                "denoising",
                task.step,
                task.steps,
                seconds_left=left_s,
                previews=job.previews,
                previews_skipped=job.previews_skipped,
                preview=preview,
            )
        )

    def tell_idle(self, roster: Roster[Any, Any]) -> None:
        """To those that wait their places, and to those that pause their time, when either has changed."""
        idle = [job for job in roster.jobs if job not in roster.batch and self.is_due(job)]
        if not idle:
            return
        places, forecasts = roster.places(), roster.forecasts()
        for job in idle:
            arrival = job.task.arrival
            soon = forecasts.get(arrival)
            if job.task.started:
                self._try(job, functools.partial(self.tell_progress, job, soon))
            elif arrival in places and self._has_news(job, places[arrival], soon):
                self.tell_place(job, places[arrival], soon)

    def tell_place(self, job: Job[Any, Any], position: int, soon: Forecast | None) -> None:
        """Of a request that waits."""
        job.reported_s, job.reported_position = self._clock(), position
        start_s, left_s = (None, None) if soon is None else (round(seconds, 3) for seconds in soon)
        if start_s is not None:
            job.reported_start_s = job.reported_s + start_s
        progress = EngineProgress("queued", 0, job.task.steps, position, start_s, left_s)
        self._try(job, lambda: job.listener.progress(progress))

    def _has_news(self, job: Job[Any, Any], position: int, soon: Forecast | None) -> bool:
        """Whether the place of a request that waits has changed, or its start by more than `NEWS_SHARE`."""
        if position != job.reported_position:
            return True
        if soon is None:
            return False
        off_s = abs(self._clock() + soon.to_start - job.reported_start_s)
        return not off_s <= max(self._interval_s, NEWS_SHARE * soon.to_start)  # also if it was told no time: nan

    def _try(self, job: Job[Any, Any], tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:  # its failure is reported when it is dropped, at the next boundary
            _log.warning("the state of request %s could not be reported: %s", job.request_id, error)
            job.stopped = True
