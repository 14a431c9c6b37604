"""A network that computes in half precision, behind the float32 interface that every graph has.

Weights are cast once. Inputs are cast at every call, and the outputs back to float32, inside the graph: the sampler's
coefficients, latents between two steps and geometry never leave float32. Back ends that export a module (ONNX,
AOTInductor) export this one, so that their files have the same interface.
"""

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
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


@contextmanager
def without_parameters() -> Iterator[None]:
    """Networks built inside have their parameters on the meta device, so that nothing is allocated or initialised.

    Their buffers are real: not all of them are weights, and no file holds the others. `cast_network` allocates the
    parameters, in the type and on the device where they are wanted.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is registered twice stays one
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def cast_network(
    network: nn.Module,
    precision: Precision,
    float32_parts: Collection[str] = (),
    device: torch.device | str | None = None,
) -> nn.Module:
    """Cast the weights of a network in place.

    Args:
        network: in float32; or built `without_parameters`, and its weights are loaded afterwards.
        precision: the type that it will compute in.
        float32_parts: names of submodules that stay in float32. They cast what they are given; what follows them in the
            network must take float32.
        device: where its weights shall lie; None leaves them where they are.
    """
    kept = [] if precision == "fp32" else [network.get_submodule(name) for name in float32_parts]
    held = {id(module) for part in kept for module in part.modules()}
    made: dict[int, nn.Parameter] = {}  # parameters on the meta device -> what replaces them wherever they are used
    for module in network.modules():
        _move_own(module, torch.float32 if id(module) in held else DTYPES[precision], device, made)
    for part in kept:
        part.register_forward_pre_hook(_inputs_to_float32)
    return network


def _move_own(
    module: nn.Module, dtype: torch.dtype, device: torch.device | str | None, made: dict[int, nn.Parameter]
) -> None:
    """Cast and move a module's own tensors, not those of its children. Only floating-point ones change their type."""

    def of(tensor: Tensor) -> torch.dtype:
        return dtype if tensor.is_floating_point() else tensor.dtype

    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        if parameter.is_meta and device is not None:
            if id(parameter) not in made:
                empty = torch.empty_like(parameter, dtype=of(parameter), device=device)
                made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        else:
            parameter.data = parameter.data.to(device, of(parameter))
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        module._buffers[name] = buffer.to(device, of(buffer))


def _inputs_to_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, Tensor) else value for value in inputs)
