"""Eager torch."""

from typing import Any

import torch
from torch import Tensor, nn

from diffsplat.graph import Backend


class TorchGraph:
    """A graph run by eager torch, in float32 and evaluation mode."""

    backend: Backend = "torch"

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module.eval()

    def __call__(self, *inputs: Tensor) -> Any:
        """Run without gradients (not in inference mode: the result may be updated in place by its owner)."""
        with torch.no_grad():
            return self.module(*inputs)
