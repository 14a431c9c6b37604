"""The events of a generation's stream, in this order: Queued* Progress* Finished."""

from dataclasses import dataclass

from diffsplat_client.generation import Generation
from diffsplat_client.status import Status


@dataclass(frozen=True)
class Queued:
    """The request waits for its turn; `position` 1 is the next one."""

    position: int
    seed: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """`step` of `steps` denoising steps are done."""

    step: int
    steps: int
    seconds_left: float | None  # the server's estimate for the steps that remain
    seed: int
    elevation_deg: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Finished:
    """The last event."""

    result: Generation


Event = Queued | Progress | Finished


def event_of(status: Status) -> Queued | Progress:
    """The event for a request that has not finished."""
    if status.phase == "queued":
        return Queued(status.queue_position, status.seed, status.warnings)
    return Progress(status.step, status.steps, status.seconds_left, status.seed, status.elevation_deg, status.warnings)
