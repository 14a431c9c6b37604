"""The stages of training, one class per file; all follow `training.stage.Stage`."""

import importlib

from training.config.common import StageConfig
from training.stage import Stage


def build_stage(config: StageConfig) -> Stage:
    """The stage that a config describes; only its own module is imported."""
    module, name = config.stage.split(":")
    return getattr(importlib.import_module(module), name)(config)
