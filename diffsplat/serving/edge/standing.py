"""Where a recorded request stands, in words that an app can show."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from diffsplat_client.error_text import StageError

from diffsplat.serving.edge.results_store import Recording


@dataclass(frozen=True)
class Standing:
    """State of a request.

    Attributes:
        state: "running", or how it ended: "finished", "cancelled", "expired" or "failed".
        phase: of its last STATUS, "" before the first.
        step, steps, queue_position, seconds_left, seed, warnings: as in STATUS; None or empty while not known.
        previews, previews_skipped: likewise; the newest preview can be fetched while the request runs.
        error_type, error: why it did not finish.
        retry_after_s: seconds after which an overloaded server expects to have room; None if it does not say.
        result_bytes: of what is kept.
    """

    state: str
    phase: str = ""
    step: int | None = None
    steps: int | None = None
    queue_position: int | None = None
    seconds_left: float | None = None
    seed: int | None = None
    index: int = 0
    results: int = 1
    previews: int = 0
    previews_skipped: int = 0
    warnings: tuple[str, ...] = ()
    error_type: str = ""
    error: str = ""
    retry_after_s: float | None = None
    result_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)


_FIELDS = (
    *("phase", "step", "steps", "queue_position", "seconds_left", "seed"),
    *("index", "results", "previews", "previews_skipped"),
)


def standing_of(recording: Recording) -> Standing:
    """Of a recorded request, now."""
    values = recording.status
    known = {name: values[name] for name in _FIELDS if name in values}
    said = StageError.from_text(recording.error)
    return Standing(
        state=recording.end_state,
        warnings=tuple(values.get("warnings", ())),
        error_type=recording.error_type,
        error=recording.error if said is None else said.message,
        retry_after_s=None if said is None else said.retry_after_s,
        result_bytes=recording.size,
        **known,
    )
