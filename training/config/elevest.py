"""Configuration of the elevest stage."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from diffsplat.images.elevest import ElevEstConfig
from training.config.common import Bound, StageConfig


@dataclass(frozen=True)
class ElevationConfig(StageConfig):
    """ElevEst: a photo of an object -> elevation of its camera. `data.views` random views of every object."""

    stage: ClassVar[str] = "training.stages.elevest:ElevationStage"
    parents: ClassVar[tuple[str, ...]] = ("start",)
    best: ClassVar[str] = "-error_deg"

    # weights of DINOv2 with registers (Meta's .pth file or a folder of the hub), or a finished run of this stage or a
    # bundle; random weights if not given
    start: Path | None = None
    network: ElevEstConfig = field(default_factory=ElevEstConfig)  # angles are the network's: negative is above
    # of the squared error within a bin, in degrees; with `compat` the offset is clamped to its bin in training too, as
    # published, and has no gradient outside
    offset_weight: float = 1.0
    freeze_backbone: bool = False  # train the two heads alone

    def bounds(self) -> list[Bound]:
        """Adds the weight of the offset and the number of bins."""
        return [
            *super().bounds(),
            Bound("offset_weight", self.offset_weight, 0.0, 1e6),
            Bound("network.num_bins", self.network.num_bins, 2, 10**4),
            Bound("network.lowest_deg", self.network.lowest_deg, -90.0, self.network.highest_deg - 1e-3),
            Bound("network.highest_deg", self.network.highest_deg, self.network.lowest_deg + 1e-3, 90.0),
        ]
