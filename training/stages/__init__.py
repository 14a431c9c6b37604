"""The stages of training, one class per file; all follow `training.loop.Stage`."""

from training.config import DiffusionConfig, ReconConfig, StageConfig, VaeConfig
from training.loop import Stage
from training.stages.diffusion import DiffusionStage
from training.stages.recon import ReconStage
from training.stages.vae import VaeStage


def build_stage(config: StageConfig) -> Stage:
    """The stage that a config describes."""
    match config:
        case ReconConfig():
            return ReconStage(config)
        case VaeConfig():
            return VaeStage(config)
        case DiffusionConfig():
            return DiffusionStage(config)
        case _:
            raise ValueError(f"no stage is trained by a {type(config).__name__}")
