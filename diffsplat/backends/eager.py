"""Eager torch."""

from typing import Any

import torch
from torch import Tensor, nn

from diffsplat.graph import Backend


class TorchGraph:
    """A graph run by eager torch, in float32 and evaluation mode, on the device where its module lies."""

    backend: Backend = "torch"

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module.eval()

    def __call__(self, *inputs: Tensor) -> Any:
        """Run without gradients (not in inference mode: the caller may update the result in place).

        Inputs and outputs lie on the CPU, whatever the module's device.
        """
        weight = next(self.module.parameters(), None)
        device = torch.device("cpu") if weight is None else weight.device
        with torch.no_grad():
            outputs = self.module(*(value.to(device) for value in inputs))
        return outputs.cpu() if isinstance(outputs, Tensor) else tuple(output.cpu() for output in outputs)
