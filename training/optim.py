"""Parameter groups, the optimiser and the learning rate over steps."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from training.config.common import Optim


def decay_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices and kernels decay; norms, biases and embeddings do not."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for root in modules:
        embeddings = {id(part.weight) for part in root.modules() if isinstance(part, nn.Embedding)}
        for parameter in root.parameters():
            if parameter.requires_grad:
                flat = parameter.ndim < 2 or id(parameter) in embeddings
                (kept if flat else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(groups: list[dict[str, Any]], config: Optim) -> torch.optim.AdamW:
    """AdamW over the groups."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, config: Optim) -> float:
    """Rate after `step` updates: linear from 0 over the warm-up, then constant or half a cosine to 0."""
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
