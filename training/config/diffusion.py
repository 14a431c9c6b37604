"""Configuration of the diffusion stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from training.config.common import Bound, StageConfig


@dataclass(frozen=True)
class DiffusionConfig(StageConfig):
    """Text-conditioned multi-view denoiser on cached latents, trained together with its text encoder."""

    stage: ClassVar[str] = "training.stages.diffusion:DiffusionStage"

    recon: Path = Path("runs/pico/recon")
    vae: Path = Path("runs/pico/vae")
    start: Path | None = None  # finished run of this stage to start from; random weights if not given
    text_dropout: float = 0.1  # share of objects whose caption is replaced by an empty one
    min_snr_gamma: float = 0.0  # 0: all timesteps weigh the same
    evaluation_steps: int = 16

    def bounds(self) -> list[Bound]:
        """Adds the share of dropped captions."""
        return [*super().bounds(), Bound("text_dropout", self.text_dropout, 0.0, 1.0)]
