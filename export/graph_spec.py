"""Specification of an exported graph: inputs, outputs, free axes, sample inputs, and its module."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle
from diffsplat.geometry.cameras import orbit_cameras, plucker_rays
from diffsplat.graph import Precision
from diffsplat.networks import build_graph_module, bundle_network, graph_modules, served_precision


class TensorAxes(NamedTuple):
    """Name and axes of one tensor of a graph; a string is a free axis."""

    name: str
    axes: tuple[int | str, ...]
    sample: Literal["normal", "token", "mask", "timestep", "colour", "ray"] = "normal"


@dataclass(frozen=True)
class GraphSpec:
    """One graph of one backbone."""

    name: str
    stage: str
    inputs: tuple[TensorAxes, ...]
    outputs: tuple[TensorAxes, ...]
    serving_sizes: dict[str, int]  # sizes of the free axes for one request; the first axis is the batch
    token_range: int = 1  # token ids are below this
    timestep_range: int = 1

    @property
    def batch_axis(self) -> str:
        """Name of the batch axis."""
        return next(iter(self.serving_sizes))

    @property
    def free_axes(self) -> dict[str, dict[int, str]]:
        """Tensor name -> {axis: name}, in the form that torch's exporter takes."""
        return {
            tensor.name: {i: axis for i, axis in enumerate(tensor.axes) if isinstance(axis, str)}
            for tensor in (*self.inputs, *self.outputs)
        }

    @property
    def parity_sizes(self) -> tuple[dict[str, int], ...]:
        """Sizes of the free axes for comparing the exported with the original graph; none is the traced size."""
        served = self.serving_sizes
        sizes = [{**served, self.batch_axis: 1}, {**served, self.batch_axis: 3}]
        others = {axis: max(size // 2, 1) for axis, size in served.items() if axis != self.batch_axis}
        return (*sizes, {self.batch_axis: 3, **others}) if others else tuple(sizes)

    def sample_inputs(self, sizes: Mapping[str, int], seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs in the ranges that serving uses, for given sizes of the free axes."""
        generator = torch.Generator().manual_seed(seed)
        samples = []
        for tensor in self.inputs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes]
            if tensor.sample == "token":
                samples.append(torch.randint(self.token_range, shape, generator=generator))
            elif tensor.sample == "mask":  # always keeps the first token, rarely the last one
                ranks = torch.rand(shape, generator=generator) * shape[1]
                samples.append((torch.arange(shape[1]) <= ranks).to(torch.int64))
            elif tensor.sample == "colour":
                samples.append(torch.rand(shape, generator=generator))
            elif tensor.sample == "ray":
                samples.append(_rays(shape, generator))
            elif tensor.sample == "timestep":
                samples.append(torch.rand(shape, generator=generator) * (self.timestep_range - 1))
            else:
                samples.append(torch.randn(shape, generator=generator))
        return tuple(samples)

    def network(self, spec: BackboneSpec) -> str:
        """Name of the network from which the graph is made."""
        return graph_modules(spec)[self.name].network

    def build(self, bundle: Bundle, precision: Precision = "fp32", device: torch.device | str = "cpu") -> nn.Module:
        """The torch module with the bundle's weights; its inputs and outputs are float32 in any precision."""
        owner = self.network(bundle.spec)
        network = bundle_network(bundle, owner, precision, device)
        return build_graph_module(self.name, bundle.spec, network, served_precision(owner, precision))


def _rays(shape: list[int], generator: torch.Generator) -> Tensor:
    """Pluecker rays [..., V, 6, H, W] of cameras at random places around the object."""
    elevation_deg = 60 * torch.rand(shape[:-3], generator=generator) - 30
    azimuth_deg = 360 * torch.rand(shape[:-3], generator=generator)
    return plucker_rays(*orbit_cameras(elevation_deg, azimuth_deg, 1.4), shape[-2], shape[-1], "pixel_centers")
