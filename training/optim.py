"""What is trained, parameter groups, the optimiser and the learning rate over steps."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from training.config.common import Optim

# a network's method that turns gradient checkpointing on -> its arguments
_SWITCHES: dict[str, tuple[dict[str, bool], ...]] = {
    "enable_gradient_checkpointing": (),  # diffusers, and our GSRecon
    "activation_checkpointing_enable": ({"use_reentrant": False},),  # transformers
    "gradient_checkpointing_enable": ({"use_reentrant": False},),  # its older versions
}


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


def freeze_all_but(trained: nn.Module, parts: tuple[str, ...]) -> None:
    """Freeze the parameters of all modules whose name holds none of `parts` (``optim.trainable``); () freezes none.

    Raises:
        ValueError: a part is in no name of a module with parameters to train.
    """
    if not parts:
        return
    names = {
        name.rpartition(".")[0]: parameter for name, parameter in trained.named_parameters() if parameter.requires_grad
    }
    for part in parts:
        if not any(part in name for name in names):
            raise ValueError(f"optim.trainable = {part!r}: is in no module's name; some are {', '.join(_some(names))}")
    for name, parameter in trained.named_parameters():
        if not any(part in name.rpartition(".")[0] for part in parts):
            parameter.requires_grad_(False)


def scaled_groups(
    groups: list[dict[str, Any]], trained: nn.Module, multipliers: tuple[tuple[str, float], ...]
) -> list[dict[str, Any]]:
    """Split groups by the factor of their parameters' learning rate, which is kept as the group's ``lr_scale``.

    A stage's group may have an ``lr_scale`` of its own, which the factors multiply.

    Args:
        groups: Of a stage.
        trained: The module whose parameter names count.
        multipliers: ``optim.lr_multipliers``.

    Raises:
        ValueError: a part is in no name of a trained parameter.
    """
    names = {id(parameter): name for name, parameter in trained.named_parameters()}
    given = [names[id(parameter)] for group in groups for parameter in group["params"]]
    for part, _ in multipliers:
        if not any(part in name for name in given):
            names_given = ", ".join(_some(given))
            raise ValueError(f"optim.lr_multipliers = {part!r}: is in no trained parameter's name; some: {names_given}")
    split: list[dict[str, Any]] = []
    for group in groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            name = names[id(parameter)]
            factor = next((factor for part, factor in multipliers if part in name), 1.0)
            by_scale.setdefault(group.get("lr_scale", 1.0) * factor, []).append(parameter)
        split += [{**group, "params": parameters, "lr_scale": scale} for scale, parameters in by_scale.items()]
    return split


def build_optimizer(groups: list[dict[str, Any]], config: Optim) -> torch.optim.AdamW:
    """AdamW over the groups."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all groups, each times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def learning_rate(step: int, config: Optim) -> float:
    """Rate after `step` updates: linear from 0 over the warm-up, then constant, or half a cosine or a line to 0.

    Updates are counted alike whatever the number of processes and of batches in an update.
    """
    if step < config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    return config.lr * (1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress)))


def updates_per_epoch(batches: int, accumulation: int) -> int:
    """Updates in one pass over the objects: `batches` per process, the last update may have fewer."""
    return -(-batches // accumulation)


def enable_gradient_checkpointing(trained: nn.Module) -> None:
    """Turn on the switch of every trained network that has one.

    Raises:
        ValueError: none has.
    """
    pending, found = [trained], False
    while pending:
        module = pending.pop()
        for name, arguments in _SWITCHES.items():
            if callable(switch := getattr(module, name, None)):
                switch(*arguments)
                found = True
                break
        else:
            pending += module.children()
    if not found:
        raise ValueError("optim.gradient_checkpointing: no network of this stage has such a switch")


def _some(names: Iterable[str]) -> list[str]:
    """Up to eight names, spread evenly."""
    every = list(dict.fromkeys(names))
    return every[:: max(1, len(every) // 8)][:8]
