"""The graphs that are exported. Each answers: inputs, output, free axes, sample inputs, and the module behind it.

    stage    graph              inputs                                   output
    encode   text_encoder       input_ids [rows, tokens]                 embeddings [rows, tokens, D]
    denoise  denoiser_context   embeddings [rows, tokens, D]             context [rows, tokens, P]
    denoise  denoiser           latents, plucker, timesteps, context     prediction [rows, V, C, h, w]
    decode   decoder            latents [objects, V, C, h, w]            grid [objects, V, 12, H, W]

A row is one (request, guidance branch). Context: once per request; denoiser: every step; decoder: once per object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle
from diffsplat.multiview import TextContext, build_denoiser
from diffsplat.networks import GRAPHS, build_graph_module
from diffsplat.views import PLUCKER_CHANNELS

GRID_CHANNELS = 12


class TensorAxes(NamedTuple):
    """One tensor of a graph: its name and its axes, where a word stands for a free axis."""

    name: str
    axes: tuple[int | str, ...]
    sample: Literal["normal", "token", "timestep"] = "normal"


@dataclass(frozen=True)
class GraphSpec:
    """One graph of one backbone."""

    name: str
    stage: str
    inputs: tuple[TensorAxes, ...]
    output: TensorAxes
    serving_rows: int  # length of the first axis while one request is served: 2 guidance branches, or 1 object
    tokens: int  # length of the free axis `tokens` as served
    token_range: int  # token ids lie below this
    timestep_range: int

    @property
    def network(self) -> str:
        """The network of the bundle that it is made of."""
        return GRAPHS[self.name].network

    @property
    def batch_axis(self) -> str:
        """Name of the first axis, the batch."""
        name = self.output.axes[0]
        assert isinstance(name, str)
        return name

    @property
    def free_axes(self) -> dict[str, dict[int, str]]:
        """Tensor name -> {axis: its name}, as exporters want it."""
        return {
            tensor.name: {i: axis for i, axis in enumerate(tensor.axes) if isinstance(axis, str)}
            for tensor in (*self.inputs, self.output)
        }

    @property
    def parity_sizes(self) -> tuple[dict[str, int], ...]:
        """Sizes of the free axes at which exported and original graph are compared; none is the traced one."""
        sizes = [{self.batch_axis: 1, "tokens": self.tokens}, {self.batch_axis: 3, "tokens": self.tokens}]
        if any("tokens" in tensor.axes for tensor in self.inputs):
            sizes.append({self.batch_axis: 3, "tokens": max(self.tokens // 2, 1)})
        return tuple(sizes)

    @property
    def serving_sizes(self) -> dict[str, int]:
        """Sizes of the free axes while one request is served."""
        return {self.batch_axis: self.serving_rows, "tokens": self.tokens}

    def sample_inputs(self, sizes: Mapping[str, int], seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of the kind that serving sees, for given sizes of the free axes."""
        generator = torch.Generator().manual_seed(seed)
        samples = []
        for tensor in self.inputs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes]
            if tensor.sample == "token":
                samples.append(torch.randint(self.token_range, shape, generator=generator))
            elif tensor.sample == "timestep":
                samples.append(torch.rand(shape, generator=generator) * (self.timestep_range - 1))
            else:
                samples.append(torch.randn(shape, generator=generator))
        return tuple(samples)

    def build(self, bundle: Bundle) -> nn.Module:
        """The torch module with the bundle's weights."""
        return build_graph_module(self.name, bundle.spec, bundle.load(self.network))


def graph_specs(spec: BackboneSpec) -> tuple[GraphSpec, ...]:
    """The graphs of a backbone, in the order in which a request meets them."""
    views, size, grid = spec.geometry.views, spec.latent_size, spec.geometry.grid_size
    text_width = spec.text_encoder.config["hidden_size"]
    with torch.device("meta"):  # shapes only
        context_width = TextContext(build_denoiser(spec))(torch.empty(1, 1, text_width)).shape[-1]
    latents = (views, spec.latent_channels, size, size)
    embeddings = TensorAxes("embeddings", ("rows", "tokens", text_width))
    context = TensorAxes("context", ("rows", "tokens", context_width))

    def graph(name: str, stage: str, inputs: tuple[TensorAxes, ...], output: TensorAxes, rows: int) -> GraphSpec:
        tokens = spec.text_encoder.max_tokens
        token_range = spec.text_encoder.config["vocab_size"]
        return GraphSpec(name, stage, inputs, output, rows, tokens, token_range, spec.schedule.num_train_timesteps)

    return (
        graph("text_encoder", "encode", (TensorAxes("input_ids", ("rows", "tokens"), "token"),), embeddings, 2),
        graph("denoiser_context", "denoise", (embeddings,), context, 2),
        graph(
            "denoiser",
            "denoise",
            (
                TensorAxes("latents", ("rows", *latents)),
                TensorAxes("plucker", ("rows", views, PLUCKER_CHANNELS, size, size)),
                TensorAxes("timesteps", ("rows",), "timestep"),
                context,
            ),
            TensorAxes("prediction", ("rows", *latents)),
            2,
        ),
        graph(
            "decoder",
            "decode",
            (TensorAxes("latents", ("objects", *latents)),),
            TensorAxes("grid", ("objects", views, GRID_CHANNELS, grid, grid)),
            1,
        ),
    )
