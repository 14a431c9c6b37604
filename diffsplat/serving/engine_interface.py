"""What the engine needs and gives: the model it steps, the listener of a request, its policy, its errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

# Triton answers `is_cancelled` through another process, which costs as much as a tenth of a small network's step
CANCEL_CHECK_INTERVAL_S = 0.05


class QueueFullError(RuntimeError):
    """No place left among the waiting requests; the message names the limit."""


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
    """The model that runs requests. All calls come from the engine's thread."""

    def start(self, work: Work) -> State:
        """Prepare one request; an exception fails this request alone."""

    def step(self, states: Sequence[State]) -> None:
        """One step of every request, as one batch: all of them advance, or it raises and no request advances."""


@dataclass(frozen=True)
class EngineProgress:
    """Where a request stands."""

    phase: str  # "queued" or "denoising"
    step: int = 0
    steps: int = 0
    queue_position: int = 0  # requests to be admitted before this one, plus one; 0 once it runs
    seconds_left: float | None = None


class Listener(Protocol[FinishedState]):
    """Receives the events of one request, in the engine's thread; its place in the queue also in the submitting one.

    It must not block for long: all requests wait. `finished` or `failed` is the last call. An exception in `progress`
    or `finished` fails the request.
    """

    def progress(self, progress: EngineProgress) -> None:
        """The request waits, or made a step."""

    def finished(self, state: FinishedState, denoise_ms: float, queued_ms: float) -> None:
        """All steps are done."""

    def failed(self, error: Exception) -> None:
        """It ended early: RequestCancelledError if stopped, RequestTimeoutError if too late, or what went wrong."""

    def is_cancelled(self) -> bool:
        """Whether the client has left; called at step boundaries, at most every `CANCEL_CHECK_INTERVAL_S`."""


@dataclass(frozen=True)
class EnginePolicy:
    """Deployment choices; read from the model's `config.pbtxt` parameters.

    Attributes:
        max_batch: requests that are denoised together.
        max_queue: requests that may wait; more are refused at once.
        progress_interval_s: shortest time between two progress messages of a request; the first step is always
            reported, the last one by the result.
    """

    max_batch: int = 4
    max_queue: int = 64
    progress_interval_s: float = 0.25

    def __post_init__(self) -> None:
        """Refuse values that could never serve a request."""
        if self.max_batch < 1 or self.max_queue < 0 or not self.progress_interval_s >= 0:
            raise ValueError(f"{self}: max_batch must be >= 1, max_queue >= 0, progress_interval_s >= 0")

    @classmethod
    def from_parameters(cls, parameters: dict[str, str]) -> "EnginePolicy":
        """Read the attributes above; absent ones keep their defaults. ValueError names a value that is not a number."""
        values: dict[str, Any] = {}
        for name, kind in (("max_batch", int), ("max_queue", int), ("progress_interval_s", float)):
            if name in parameters:
                try:
                    values[name] = kind(parameters[name])
                except ValueError:
                    raise ValueError(
                        f"parameter {name} = {parameters[name]!r}: must be a number ({kind.__name__})"
                    ) from None
        return cls(**values)
