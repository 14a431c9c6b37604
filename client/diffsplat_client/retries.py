"""Requests sent again while nothing has been answered: after UNAVAILABLE alone, and after a pause."""

import random
import time
from collections.abc import Callable
from typing import NamedTuple

from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.runtime import Pause
from diffsplat_client.transport import AsyncResponseStream, Tensors, TransportError

MAX_RETRIES = 100


class RetryPolicy(NamedTuple):
    """How often and how fast. All pauses are partly random, so that clients do not come back together."""

    retries: int = 2
    first_pause_s: float = 0.25  # doubled with each
    longest_pause_s: float = 8.0

    def pause_s(self, attempt: int, retry_after_s: float | None = None) -> float:
        """Before attempt 1, 2, ...: half of the pause to all of it, but not before the server expects to have room."""
        pause_s = min(self.first_pause_s * 2.0 ** (attempt - 1), self.longest_pause_s) * random.uniform(0.5, 1.0)
        return pause_s if retry_after_s is None else max(pause_s, retry_after_s * random.uniform(1.0, 1.25))


def check_retries(retries: int) -> int:
    """InvalidRequestError for what is no number of retries."""
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= MAX_RETRIES:
        raise InvalidRequestError(f"retries = {retries!r}: must be in 0 .. {MAX_RETRIES}")
    return retries


class RetriedResponses:
    """The responses of one request, which is sent again as long as the first of them is not here.

    Args:
        send: sends it, with the seconds that it may take; raises TransportError.
        ends_at: monotonic time by which everything must have happened, pauses included.
        policy: how often and how fast.
        pause: between attempts.
    """

    def __init__(
        self, send: Callable[[float], AsyncResponseStream], ends_at: float, policy: RetryPolicy, pause: Pause
    ) -> None:
        self._send, self._ends_at, self._policy, self._pause = send, ends_at, policy, pause
        self._attempt = 0
        self._answered = self._cancelled = False
        self._stream = send(ends_at - time.monotonic())

    async def read(self) -> Tensors | None:
        """The next response, None after the last one; TransportError when the request has failed for good."""
        while True:
            try:
                response = await self._stream.read()
            except TransportError as error:
                await self._send_again(error)
            else:
                self._answered = True
                return response

    def cancel(self) -> None:
        """End the stream, and send nothing more."""
        self._cancelled = True
        self._pause.cut()
        self._stream.cancel()

    async def _send_again(self, error: TransportError) -> None:
        """After a pause; raises the error where another attempt is not allowed."""
        self._attempt += 1
        pause_s = self._policy.pause_s(self._attempt, error.retry_after_s)
        allowed = error.code == "UNAVAILABLE" and not self._answered and self._attempt <= self._policy.retries
        if not allowed or time.monotonic() + pause_s >= self._ends_at:
            raise error
        if await self._pause.wait(pause_s):
            raise TransportError("CANCELLED", "the request was stopped before it was sent again")
        left_s = self._ends_at - time.monotonic()
        if left_s <= 0:  # the pause has lasted longer than it should
            raise error
        self._stream = self._send(left_s)
        if self._cancelled:  # while it was sent
            self._stream.cancel()
