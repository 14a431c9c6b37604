"""What the engine needs and gives: the model it steps, the listener of a request, the observer of all, its errors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from diffsplat_client.errors import RequestCancelledError, RequestTimeoutError

from diffsplat.serving.errors import OverloadedError
from diffsplat.stages.work_size import WorkSize

# Triton answers `is_cancelled` through another process, which costs as much as a tenth of a small network's step
CANCEL_CHECK_INTERVAL_S = 0.05


class QueueFullError(OverloadedError):
    """No place left among the waiting requests."""


class EngineClosedError(RuntimeError):
    """The engine takes no more requests, or ended this one, because its server is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class RunState(Protocol):
    """A request between two steps."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def steps(self) -> int:
        """Steps in all."""


Work = TypeVar("Work", contravariant=True)
State = TypeVar("State", bound=RunState)
FinishedState = TypeVar("FinishedState", bound=RunState, contravariant=True)


class StepModel(Protocol[Work, State]):
    """The model that runs requests. All calls but that of `size` come from the engine's thread."""

    def size(self, work: Work) -> WorkSize:
        """Of a request that has not been started; from the thread that submits it."""

    def start(self, work: Work) -> State:
        """Prepare one request; an exception fails this request alone."""

    def step(self, states: Sequence[State]) -> None:
        """One step of every request, as one batch: all of them advance, or it raises and no request advances."""


@dataclass(frozen=True)
class EngineProgress:
    """Where a request stands. Seconds are estimates, None as long as no step has been measured."""

    phase: str  # "queued" or "denoising"
    step: int = 0
    steps: int = 0
    queue_position: int = 0  # requests to be started before this one, plus one; 0 once it runs
    seconds_to_start: float | None = None  # until its first step begins; None once it runs
    seconds_left: float | None = None  # until its last step has ended
    previews: int = 0  # made so far
    previews_skipped: int = 0  # that were due, and for which there was no time
    preview: Any = field(default=None, compare=False)  # what the engine's `preview` made after this step, if it did


class Listener(Protocol[FinishedState]):
    """Receives the events of one request, in the engine's thread; its place in the queue also in the submitting one.

    It must not block for long: all requests wait. `finished` or `failed` is the last call. An exception in `progress`
    or `finished` fails the request.
    """

    def progress(self, progress: EngineProgress) -> None:
        """The request waits, or made a step."""

    def finished(self, state: FinishedState, denoise_ms: float, queued_ms: float) -> None:
        """All steps are done."""

    def failed(self, error: Exception, end_state: str) -> None:
        """It ended early: RequestCancelledError if stopped, RequestTimeoutError if too late, or what went wrong.

        `end_state` is one of contract.EARLY_END_STATES.
        """

    def is_cancelled(self) -> bool:
        """Whether the client has left; called at step boundaries, at most every `CANCEL_CHECK_INTERVAL_S`."""


class EngineLoad(NamedTuple):
    """Requests by what they do."""

    active: int = 0  # in the present step
    paused: int = 0  # started, and not in the present step
    waiting: int = 0  # not started


class EngineObserver:
    """Told of everything that is worth a metric, in the engine's thread. Does nothing with it."""

    def load(self, load: EngineLoad) -> None:
        """The numbers of requests have changed."""

    def stepped(self, requests: int, seconds: float) -> None:
        """A step of so many requests took so long."""

    def started(self, queued_s: float) -> None:
        """A request was started so long after it arrived."""

    def progressed(self, seconds: float) -> None:
        """A request ended its first step so long after it arrived."""

    def previewed(self, made: bool) -> None:
        """A preview was due, and was made or skipped."""

    def ended(self, end_state: str, seconds: float) -> None:
        """A request ended so long after it arrived; one of contract.END_STATES."""


def early_end_state(error: Exception, started: bool) -> str:
    """What contract.EARLY_END_STATES calls a request that ended with this error."""
    if isinstance(error, RequestCancelledError):
        return "cancelled" if started else "aborted"
    return "expired" if isinstance(error, RequestTimeoutError) else "failed"
