"""Eager torch."""

from typing import Any

import torch
from torch import Tensor, nn

from diffsplat.graph import Backend, Precision


class TorchGraph:
    """A graph run by eager torch in evaluation mode, on the device where its module lies.

    Args:
        name: name of the graph.
        module: its module, with float32 inputs and outputs in any precision (see `precision.in_precision`).
        precision: what it computes in.
    """

    backend: Backend = "torch"

    def __init__(self, name: str, module: nn.Module, precision: Precision = "fp32") -> None:
        self.name = name
        self.precision: Precision = precision
        self.module = module.eval()

    @property
    def device(self) -> torch.device:
        """Where the module lies now: training moves its networks."""
        weight = next(self.module.parameters(), None)
        return torch.device("cpu") if weight is None else weight.device

    def __call__(self, *inputs: Tensor) -> Any:
        """Run without gradients (not in inference mode: the caller may update the result in place)."""
        with torch.no_grad():
            return self.module(*inputs)
