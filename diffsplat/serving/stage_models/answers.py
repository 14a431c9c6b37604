"""The bytes of answers that are being made: limited when a request is accepted, given back by the stage that made them.

    first stage: reserve --> ticket in the envelope --> rasterize: return_share (frames)
                                                   +--> package: return_share (splats and file)

The stages are processes of their own, so a share goes back as a datagram to the first stage. What is bounded is the sum
over all requests from their acceptance until `rasterize` and `package` have made their answers. How fast clients then
read them is not visible here.
"""

import dataclasses
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from diffsplat_client.contract import GAUSSIAN_WIDTH
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.output_options import OutputOptions

from diffsplat.serving.errors import OverloadedError
from diffsplat.stages.envelope import OutputEnvelope

# A share that no stage gives back, since its process died, is free again this long after the request's deadline, or
# after the reservation of a request without one
GRACE_S = 60.0
MAX_HOLD_S = 600.0
ASSET_BYTES = 80  # of a splat in the largest file format, rounded up

_Envelope = TypeVar("_Envelope", bound=OutputEnvelope)
_log = logging.getLogger(__name__)


class AnswersFullError(OverloadedError):
    """The answers that are being made leave no room for another one; the message names the numbers."""


class AnswerBytes(NamedTuple):
    """Size of one answer by the stage that makes it."""

    rasterize: int
    package: int


def answer_bytes(request: OutputOptions, splats: int) -> AnswerBytes:
    """An upper bound for an object of `splats` splats."""
    frames = 0 if request.frame_poses is None else len(request.frame_poses)
    per_splat = 4 * GAUSSIAN_WIDTH + ASSET_BYTES * len(request.file_formats)
    kept = splats if request.num_gaussians is None else min(splats, request.num_gaussians)
    previews = 1 if getattr(request, "preview_every", 0) else 0  # at a time
    return AnswerBytes(frames * request.frame_size**2 * 3, kept * (per_splat + previews * 4 * GAUSSIAN_WIDTH))


class AnswerLedger:
    """The shares that one first stage has set aside. Threads may share a ledger.

    Args:
        max_bytes: of all answers together.
        clock: seconds, monotonic.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._shares: dict[tuple[str, str], tuple[int, float]] = {}  # (key, stage) -> bytes, when they are free anyway
        self._name = secrets.token_hex(8)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(_address(self._name))
        threading.Thread(target=self._listen, name="answer-ledger", daemon=True).start()

    @property
    def total_bytes(self) -> int:
        """Sum of all shares that are out."""
        with self._lock:
            return sum(size for size, _ in self._shares.values())

    def reserve(self, size: AnswerBytes, until_s: float | None = None, answers: int = 1) -> str:
        """Set aside an answer's bytes; returns the ticket that gives them back.

        Args:
            size: of the answer.
            until_s: time of the clock after which no stage starts to work on the request.
            answers: of this size, of the same request.

        Raises:
            AnswersFullError: there is no room now.
            InvalidRequestError: there never is.
        """
        total = sum(size)
        if total * answers > self.max_bytes:
            several = "num_seeds x " if answers > 1 else ""
            raise InvalidRequestError(
                f"{several}frame_poses x frame_size: the answer would have {_mb(total * answers)} MB, this server "
                f"makes at most {_mb(self.max_bytes)} MB at a time"
            )
        now = self._clock()
        free_s = now + MAX_HOLD_S if until_s is None else until_s + GRACE_S
        key = secrets.token_hex(8)
        with self._lock:
            self._shares = {share: held for share, held in self._shares.items() if held[1] > now}
            used = sum(held for held, _ in self._shares.values())
            if used + total > self.max_bytes:
                raise AnswersFullError(
                    f"an answer of {_mb(total)} MB does not fit beside the {_mb(used)} MB that are being made: at most "
                    f"{_mb(self.max_bytes)} MB are allowed, try again later"
                )
            for stage, share in size._asdict().items():
                self._shares[key, stage] = (share, free_s)
        return f"{self._name}.{key}"

    def reserve_for(self, envelope: _Envelope, splats: int) -> _Envelope:
        """`reserve` for the object of `splats` splats that an envelope asks for; a copy with the ticket."""
        size = answer_bytes(envelope.request, splats)
        answers = getattr(envelope.request, "num_seeds", 1)
        return dataclasses.replace(envelope, ticket=self.reserve(size, envelope.deadlines.end_by_s, answers))

    def release(self, ticket: str, stage: str | None = None) -> None:
        """Free the share of one stage, or of all stages."""
        key = ticket.rpartition(".")[2]
        with self._lock:
            for name in AnswerBytes._fields if stage is None else (stage,):
                self._shares.pop((key, name), None)

    def _listen(self) -> None:
        while True:
            key, _, stage = self._socket.recv(256).decode(errors="replace").partition(" ")
            self.release(key, stage or None)


def return_share(ticket: str, stage: str | None = None) -> None:
    """Give a stage's share back to the first stage; without a stage all shares, since there will be no answer."""
    name, _, key = ticket.partition(".")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)  # a lost message costs MAX_HOLD_S, a stage that waits costs every request
        try:
            sender.sendto(f"{key} {stage or ''}".strip().encode(), _address(name))
        except OSError as error:
            _log.warning("the share of an answer could not be given back: %s", error)


def _address(name: str) -> str:
    """In the abstract namespace, which leaves no file. The stages of a server have the same parent."""
    return f"\0diffsplat-answers-{os.getppid()}-{name}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
