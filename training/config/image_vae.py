"""Configuration of the image-vae stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from training.config.common import Bound, StageConfig


@dataclass(frozen=True)
class ImageVaeConfig(StageConfig):
    """Image autoencoder of a small backbone, whose encoder shows a condition image to the denoiser."""

    stage: ClassVar[str] = "training.stages.image_vae:ImageVaeStage"
    parents: ClassVar[tuple[str, ...]] = ("vae",)
    best: ClassVar[str] = "psnr"

    vae: Path = Path("runs/pico/vae")  # whose latent scale the images' latents fit
    image_weight: float = 1.0
    ssim_weight: float = 0.2
    kl_weight: float = 1e-5  # small: keeps latents smooth without blurring the images

    def bounds(self) -> list[Bound]:
        """Adds the weights."""
        weights = ("image_weight", "ssim_weight", "kl_weight")
        return [*super().bounds(), *(Bound(name, getattr(self, name), 0.0, 1e9) for name in weights)]
