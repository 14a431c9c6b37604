"""Configuration of the recon stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from training.config.common import Bound, RenderWeights, StageConfig


@dataclass(frozen=True)
class ReconConfig(StageConfig):
    """GSRecon: images of an object -> grid of Gaussians."""

    stage: ClassVar[str] = "training.stages.recon:ReconStage"
    parents: ClassVar[tuple[str, ...]] = ("start",)
    best: ClassVar[str] = "psnr_novel"

    start: Path | None = None  # finished run of this stage, or a bundle, to start from; random weights if not given
    weights: RenderWeights = RenderWeights()
    position_weight: float = 1.0  # distance of the object's Gaussians from the true surface points of their pixels
    colour_weight: float = 0.0  # distance of the object's Gaussians from the colours of their pixels
    opacity_weight: float = 0.1  # pulls the background's Gaussians towards full transparency and one fixed look
    alive_weight: float = 0.0  # mean of -log(opacity) of the object's Gaussians; see `stages.recon.faintness`

    def bounds(self) -> list[Bound]:
        """Adds the weights."""
        return [
            *super().bounds(),
            *self.weights.bounds(),
            Bound("position_weight", self.position_weight, 0.0, 1e9),
            Bound("colour_weight", self.colour_weight, 0.0, 1e9),
            Bound("opacity_weight", self.opacity_weight, 0.0, 1e9),
            Bound("alive_weight", self.alive_weight, 0.0, 1e9),
        ]
