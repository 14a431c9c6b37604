"""Configuration of the vae stage, which also trains the decoder alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from training.config.common import Bound, RenderWeights, StageConfig


@dataclass(frozen=True)
class VaeConfig(StageConfig):
    """GSVAE: grid of Gaussians <-> latents, with a frozen GSRecon."""

    stage: ClassVar[str] = "training.stages.vae:VaeStage"

    recon: Path = Path("runs/pico/recon")  # finished run of the recon stage
    vae: Path | None = None  # finished run of this stage to start from; random weights if not given
    first_weights: Literal["random", "average"] = "random"  # of a new autoencoder: training.stages.vae_start
    part: Literal["all", "decoder"] = "all"  # the trained part; "decoder" leaves the latents of `vae` unchanged
    weights: RenderWeights = RenderWeights()
    grid_weight: float = 1.0
    render_weight: float = 1.0
    rendered_objects: int = 8  # at most, per batch; rendering costs more than the rest of a small autoencoder
    kl_weight: float = 1e-5  # small: keeps latents near unit size without blurring them

    def bounds(self) -> list[Bound]:
        """Adds the weights and the number of rendered objects."""
        return [
            *super().bounds(),
            *self.weights.bounds(),
            Bound("rendered_objects", self.rendered_objects, 1, 10**6),
            Bound("grid_weight", self.grid_weight, 0.0, 1e9),
            Bound("render_weight", self.render_weight, 0.0, 1e9),
            Bound("kl_weight", self.kl_weight, 0.0, 1e9),
        ]

    def check(self) -> None:
        """Adds that the decoder alone needs an autoencoder to start from."""
        super().check()
        if self.part == "decoder" and self.vae is None:
            raise ValueError("vae is not set: part = 'decoder' needs the finished run whose latents it keeps")
