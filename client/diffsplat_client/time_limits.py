"""Time limits of a request, on this side of the wire."""

import time

from diffsplat_client.errors import InvalidRequestError, RequestTimeoutError

DEFAULT_TIMEOUT_S = 600.0
MAX_TIMEOUT_S = 30 * 24 * 3600.0
CONNECT_TIMEOUT_S = 5.0  # for each of the small questions before a request


def check_timeout(timeout_s: float) -> float:
    """A number of seconds that a call may take; InvalidRequestError for any other."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise InvalidRequestError(f"timeout_s = {timeout_s!r}: must be a number of seconds")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:  # also catches NaN
        raise InvalidRequestError(
            f"timeout_s = {timeout_s:g}: must be more than 0 and at most {MAX_TIMEOUT_S:g}, 30 days"
        )
    return float(timeout_s)


def not_sent(timeout_s: float) -> RequestTimeoutError:
    """For a request whose time has passed before it was sent."""
    return RequestTimeoutError(f"timeout_s = {timeout_s:g} passed before the request was sent")


def remaining_s(started: float, timeout_s: float) -> float:
    """What is left of `timeout_s` seconds from `started` on, a monotonic time; RequestTimeoutError for nothing."""
    left_s = started + timeout_s - time.monotonic()
    if left_s <= 0:
        raise not_sent(timeout_s)
    return left_s
