"""The events of a generation's stream, in this order: Queued*, then Progress* with Preview* between, then Finished.

With `num_seeds` there are as many such sequences, whose events mix.
"""

from dataclasses import dataclass

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.contract import PREVIEW
from diffsplat_client.errors import ServerError
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
    index: int = 0  # which object of `num_seeds` it is


@dataclass(frozen=True)
class Progress:
    """`step` of `steps` denoising steps are done."""

    step: int
    steps: int
    seconds_left: float | None  # until the last step has ended, as the server expects; more than steps if it pauses
    seed: int
    elevation_deg: float
    warnings: tuple[str, ...] = ()
    previews_skipped: int = 0  # that were due, and for which the server had no time
    index: int = 0  # which object of `num_seeds` it is


@dataclass(frozen=True, eq=False)
class Preview:
    """The object as it would be after `step` of `steps` denoising steps, of requests with `preview_every`."""

    cloud: SplatCloud
    step: int
    steps: int
    number: int  # 1, 2, ...: counts those of this object
    seed: int
    index: int = 0  # which object of `num_seeds` it is


@dataclass(frozen=True, eq=False)
class Finished:
    """The last event of an object, `result.index` of `num_seeds`."""

    result: Generation


Event = Queued | Progress | Preview | Finished


def events_of(status: Status, tensors: dict[str, np.ndarray]) -> list[Event]:
    """The events in a response of a request that has not finished; ServerError when it breaks the contract."""
    if status.phase == "queued":
        times = (status.seconds_to_start, status.seconds_left)
        return [Queued(status.queue_position, status.seed, status.warnings, *times, status.index)]
    if status.phase != "denoising":
        return []
    where = (status.step, status.steps, status.seconds_left, status.seed, status.elevation_deg)
    events: list[Event] = [Progress(*where, status.warnings, status.previews_skipped, status.index)]
    if PREVIEW.name in tensors:
        try:
            cloud = SplatCloud.from_array(tensors[PREVIEW.name])
        except ValueError as error:
            raise ServerError(f"{PREVIEW.name} cannot be read: {error}") from None
        events.append(Preview(cloud, status.step, status.steps, status.previews, status.seed, status.index))
    return events
