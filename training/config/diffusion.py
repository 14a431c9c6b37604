"""Configuration of the diffusion stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from training.config.common import Bound, StageConfig
from training.config.objective import ObjectiveOptions


@dataclass(frozen=True)
class DiffusionConfig(StageConfig):
    """Text-conditioned multi-view denoiser on cached latents, trained together with its text encoder."""

    stage: ClassVar[str] = "training.stages.diffusion:DiffusionStage"
    parents: ClassVar[tuple[str, ...]] = ("recon", "vae", "start")

    recon: Path = Path("runs/pico/recon")
    vae: Path = Path("runs/pico/vae")
    start: Path | None = None  # finished run of this stage to start from; random weights if not given
    dropout_rate: float = 0.05  # for guidance: twice as many objects lose their caption (objectives.drop_conditions)
    objective: ObjectiveOptions = ObjectiveOptions()
    evaluation_steps: int = 16

    def bounds(self) -> list[Bound]:
        """Adds the share of dropped conditions and the numbers of the objective."""
        return [*super().bounds(), Bound("dropout_rate", self.dropout_rate, 0.0, 0.5), *self.objective.bounds()]
