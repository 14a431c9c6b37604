"""The events of a generation's stream, in this order: Queued* Progress* Finished."""

from dataclasses import dataclass

from diffsplat_client.generation import Generation
from diffsplat_client.status import Status


@dataclass(frozen=True)
class Queued:
    """The request waits for its turn; `position` 1 is the next one.

    Both times are what the server expects if nothing else arrives, None while it does not know its own speed.
    """

    position: int
    seed: int
    warnings: tuple[str, ...] = ()
    seconds_to_start: float | None = None  # until its first denoising step begins
    seconds_left: float | None = None  # until its last one has ended


@dataclass(frozen=True)
class Progress:
    """`step` of `steps` denoising steps are done."""

    step: int
    steps: int
    seconds_left: float | None  # until the last step has ended, as the server expects; more than steps if it pauses
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
        times = (status.seconds_to_start, status.seconds_left)
        return Queued(status.queue_position, status.seed, status.warnings, *times)
    return Progress(status.step, status.steps, status.seconds_left, status.seed, status.elevation_deg, status.warnings)
