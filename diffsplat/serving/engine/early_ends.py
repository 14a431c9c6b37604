"""Why a request ends before its last step."""

from typing import Any

from diffsplat_client.errors import RequestCancelledError, RequestTimeoutError

from diffsplat.serving.engine.interface import CANCEL_CHECK_INTERVAL_S
from diffsplat.serving.engine.jobs import Job


def reason_to_drop(job: Job[Any, Any], now_s: float) -> Exception | None:
    """The error with which a request is given up now, None if it goes on."""
    if job.stopped or _asked_to_cancel(job, now_s):
        return RequestCancelledError("the request was cancelled")
    if job.end_by_s is not None and now_s >= job.end_by_s:
        done = f"after {job.state.step} of {job.state.steps} steps" if job.state else "while the request waited"
        return RequestTimeoutError(f"deadline_s passed {done}")
    if job.state is None and job.start_by_s is not None and now_s >= job.start_by_s:
        return RequestTimeoutError("start_deadline_s passed while the request waited")
    return None


def _asked_to_cancel(job: Job[Any, Any], now_s: float) -> bool:
    """Whether its client has left; asked no more often than every `CANCEL_CHECK_INTERVAL_S`."""
    if now_s - job.asked_s < CANCEL_CHECK_INTERVAL_S:
        return False
    job.asked_s = now_s
    return job.listener.is_cancelled()
