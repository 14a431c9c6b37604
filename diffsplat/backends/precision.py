"""A network that computes in half precision, behind the float32 interface that every graph has.

Weights are cast once. Inputs are cast at every call, and the outputs back to float32, inside the graph: the sampler's
coefficients, latents between two steps and geometry never leave float32. Back ends that export a module (ONNX,
AOTInductor) export this one, so that their files have the same interface.
"""

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from diffsplat.graph import Precision

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Inputs that stay float32 until the network has made sinusoids of them: bf16 holds integers only up to 256.
FLOAT32_INPUTS = ("timesteps", "sizes")


class HalfPrecision(nn.Module):
    """Runs a module in another type: float32 inputs are cast to `dtype`, outputs to float32.

    Args:
        module: a graph's module, its weights already in `dtype` (see `cast_network`).
        dtype: what it computes in.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype
        names = list(inspect.signature(module.forward).parameters)
        self._float32 = {position for position, name in enumerate(names) if name in FLOAT32_INPUTS}

    def forward(self, *inputs: Tensor) -> Any:
        """As the module, with inputs and outputs in float32 (token ids and masks in int64)."""
        cast = (
            value.to(self.dtype) if value.dtype == torch.float32 and position not in self._float32 else value
            for position, value in enumerate(inputs)
        )
        outputs = self.module(*cast)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)


def in_precision(module: nn.Module, precision: Precision) -> nn.Module:
    """A graph's module with a float32 interface; its weights are in `precision` already."""
    return module if precision == "fp32" else HalfPrecision(module, DTYPES[precision])


def cast_network(network: nn.Module, precision: Precision, float32_parts: Collection[str] = ()) -> nn.Module:
    """Cast the weights of a network in place.

    Args:
        network: in float32.
        precision: the type that it will compute in.
        float32_parts: names of submodules that stay in float32. They cast what they are given; what follows them in the
            network must take float32.
    """
    if precision == "fp32":
        return network
    kept = {name: network.get_submodule(name) for name in float32_parts}
    held = {id(module) for part in kept.values() for module in part.modules()}
    for module in network.modules():
        if id(module) not in held:
            _cast_own(module, DTYPES[precision])
    for part in kept.values():
        part.register_forward_pre_hook(_inputs_to_float32)
    return network


def _cast_own(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast a module's own floating-point tensors, not those of its children, as `nn.Module.to` does."""
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            module._buffers[name] = buffer.to(dtype)


def _inputs_to_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, Tensor) else value for value in inputs)
