"""Configurations of several stages in a row."""

from dataclasses import dataclass
from pathlib import Path

from training.config.diffusion import DiffusionConfig
from training.config.recon import ReconConfig
from training.config.vae import VaeConfig


@dataclass(frozen=True)
class RecipeConfig:
    """All stages in a row, up to the bundle."""

    out: Path = Path("runs/pico")  # one folder below it per stage, and `bundle`
    resume: bool = False  # skip finished stages and continue the unfinished one
    recon: ReconConfig = ReconConfig()
    vae: VaeConfig = VaeConfig()
    decoder: VaeConfig = VaeConfig(part="decoder")
    diffusion: DiffusionConfig = DiffusionConfig()


@dataclass(frozen=True)
class RefineConfig:
    """Further training of a bundle's denoiser and text encoder."""

    bundle: Path = Path("bundles/nano")
    out: Path = Path("runs/nano-refined")  # holds `start` (the bundle's stages), `diffusion` (the run) and `bundle`
    resume: bool = False
    diffusion: DiffusionConfig = DiffusionConfig()
