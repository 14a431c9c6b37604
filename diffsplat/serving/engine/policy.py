"""EnginePolicy: how many requests the engine runs, keeps and lets wait, and in which order. Data of `config.pbtxt`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

SHORTEST = "shortest"
ARRIVAL = "arrival"
ORDERS = (SHORTEST, ARRIVAL)


@dataclass(frozen=True)
class EnginePolicy:
    """Deployment choices; read from the model's `config.pbtxt` parameters. `schedule.py` says how they act.

    Attributes:
        max_batch: requests that are denoised together.
        max_queue: requests that may wait to be started; more are refused at once.
        progress_interval_s: shortest time between two progress messages of a request; the first step is always
            reported, the last one by the result.
        order: "shortest": the least work left first. "arrival": first come, first served, within a priority.
        early_starts: requests beyond `max_batch` that may be started while all places are taken, so that they make
            their first step at once; then they pause until it is their turn.
        overtaking: requests beyond those that may be started because they go before running ones, which pause.
        overtake_share: a request goes before another one of its level if all its work takes at most this share of what
            the other has left.
        max_stretch: while such a short request runs, long ones pause so that a step takes at most this many times as
            long as one of the short request alone.
        patience: a request rises by one priority each time it has yielded to later ones for this many times as long as
            its whole work takes alone.
        preview_share: of the time that all steps of a request take alone: what previews of others may add to it.
        preview_own_share: of the time that its steps have taken so far: what its own previews may add.
    """

    max_batch: int = 4
    max_queue: int = 64
    progress_interval_s: float = 0.25
    order: str = SHORTEST
    early_starts: int = 4
    overtaking: int = 4
    overtake_share: float = 0.25
    max_stretch: float = 1.5
    patience: float = 2.0
    preview_share: float = 0.1
    preview_own_share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that could never serve a request, or say nothing."""
        limits: dict[str, tuple[float, float]] = {
            "max_batch": (1, math.inf),
            "max_queue": (0, math.inf),
            "progress_interval_s": (0, math.inf),
            "early_starts": (0, math.inf),
            "overtaking": (0, math.inf),
            "overtake_share": (0, 1),
            "max_stretch": (1, math.inf),
            "patience": (1e-3, math.inf),
            "preview_share": (0, 1),
            "preview_own_share": (0, math.inf),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:  # also catches NaN
                within = f">= {low:g}" if math.isinf(high) else f"in {low:g} .. {high:g}"
                raise ValueError(f"{name} = {getattr(self, name)}: must be {within}")
        if self.order not in ORDERS:
            raise ValueError(f"order = {self.order!r}: must be one of {', '.join(ORDERS)}")

    @property
    def makes_previews(self) -> bool:
        """Whether any request may get one."""
        return self.preview_own_share > 0

    @property
    def max_states(self) -> int:
        """Requests whose state is in memory, running or paused, at most."""
        return self.max_batch + self.early_starts + self.overtaking

    @classmethod
    def from_parameters(cls, parameters: dict[str, str]) -> "EnginePolicy":
        """Read the attributes above; absent ones keep their defaults. ValueError names a value that is not a number."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name in parameters:
                kind: type[Any] = type(field.default)
                try:
                    values[field.name] = kind(parameters[field.name])
                except ValueError:
                    raise ValueError(
                        f"parameter {field.name} = {parameters[field.name]!r}: must be a number ({kind.__name__})"
                    ) from None
        return cls(**values)


def first_come_first_served(policy: EnginePolicy) -> EnginePolicy:
    """The same limits, without any overtaking: what other policies are compared with."""
    return dataclasses.replace(policy, order=ARRIVAL, early_starts=0, overtaking=0)
