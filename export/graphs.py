"""The graphs that are exported. Each answers: inputs, outputs, free axes, sample inputs, and the module behind it.

    stage    graph                   inputs                                          outputs
    encode   text_encoder (_2, _3)   input_ids [rows, tokens] (, mask)               embeddings [.., D] (, pooled)
    denoise  denoiser_context        embeddings [rows, tokens, D]                    context [rows, tokens, P]
    denoise  denoiser_added          pooled [rows, D'], sizes [rows, 6]              added [rows, E]            SDXL
    denoise  denoiser_modulations    pooled [rows, D'], timesteps [steps]            modulations [rows, steps, M]  SD3
    denoise  denoiser                `denoiser.step_input_names`                     prediction [rows, V, C, h, w]
    decode   decoder                 latents [objects, V, C, h, w]                   grid [objects, V, 12, H, W]

A row is one (request, guidance branch). Graphs in front of the denoiser: once per request; the denoiser: every step;
the decoder: once per object.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec, TextEncoderSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.bundle import Bundle
from diffsplat.denoiser import ADDED, CONTEXT, MODULATIONS, STEP, request_graphs, step_input_names
from diffsplat.networks import build_graph_module, graph_modules, network_builders
from diffsplat.views import PLUCKER_CHANNELS

GRID_CHANNELS = 12
_MANY_STEPS = 5  # sample length of a schedule; any other does as well


class TensorAxes(NamedTuple):
    """One tensor of a graph: its name and its axes, where a word stands for a free axis."""

    name: str
    axes: tuple[int | str, ...]
    sample: Literal["normal", "token", "mask", "timestep"] = "normal"


@dataclass(frozen=True)
class GraphSpec:
    """One graph of one backbone."""

    name: str
    stage: str
    inputs: tuple[TensorAxes, ...]
    outputs: tuple[TensorAxes, ...]
    serving_sizes: dict[str, int]  # of the free axes while one request is served; the first one is the batch
    token_range: int = 1  # token ids lie below this
    timestep_range: int = 1

    @property
    def batch_axis(self) -> str:
        """Name of the first axis, the batch."""
        return next(iter(self.serving_sizes))

    @property
    def free_axes(self) -> dict[str, dict[int, str]]:
        """Tensor name -> {axis: its name}, as exporters want it."""
        return {
            tensor.name: {i: axis for i, axis in enumerate(tensor.axes) if isinstance(axis, str)}
            for tensor in (*self.inputs, *self.outputs)
        }

    @property
    def parity_sizes(self) -> tuple[dict[str, int], ...]:
        """Sizes of the free axes at which exported and original graph are compared; none is the traced one."""
        served = self.serving_sizes
        sizes = [{**served, self.batch_axis: 1}, {**served, self.batch_axis: 3}]
        others = {axis: max(size // 2, 1) for axis, size in served.items() if axis != self.batch_axis}
        return (*sizes, {self.batch_axis: 3, **others}) if others else tuple(sizes)

    def sample_inputs(self, sizes: Mapping[str, int], seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of the kind that serving sees, for given sizes of the free axes."""
        generator = torch.Generator().manual_seed(seed)
        samples = []
        for tensor in self.inputs:
            shape = [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes]
            if tensor.sample == "token":
                samples.append(torch.randint(self.token_range, shape, generator=generator))
            elif tensor.sample == "mask":  # the first token counts always, the last one seldom
                ranks = torch.rand(shape, generator=generator) * shape[1]
                samples.append((torch.arange(shape[1]) <= ranks).to(torch.int64))
            elif tensor.sample == "timestep":
                samples.append(torch.rand(shape, generator=generator) * (self.timestep_range - 1))
            else:
                samples.append(torch.randn(shape, generator=generator))
        return tuple(samples)

    def network(self, spec: BackboneSpec) -> str:
        """The network of a bundle that it is made of."""
        return graph_modules(spec)[self.name].network

    def build(self, bundle: Bundle) -> nn.Module:
        """The torch module with the bundle's weights."""
        return build_graph_module(self.name, bundle.spec, bundle.load(self.network(bundle.spec)))


def graph_specs(spec: BackboneSpec) -> tuple[GraphSpec, ...]:
    """The graphs of a backbone, in the order in which a request meets them."""
    views, grid = spec.geometry.views, spec.geometry.grid_size
    latents = (views, spec.latent_channels, spec.latent_size, spec.latent_size)
    texts = [
        _text_encoder(name, encoder)
        for name, encoder in zip(spec.text.numbered(TEXT_ENCODER), spec.text.encoders, strict=True)
    ]
    decoder = GraphSpec(
        "decoder",
        "decode",
        (TensorAxes("latents", ("objects", *latents)),),
        (TensorAxes("grid", ("objects", views, GRID_CHANNELS, grid, grid)),),
        {"objects": 1},
    )
    return (*texts, *_denoiser_graphs(spec), decoder)


def _text_encoder(name: str, encoder: TextEncoderSpec) -> GraphSpec:
    inputs = [TensorAxes("input_ids", ("rows", "tokens"), "token")]
    if encoder.masked:
        inputs.append(TensorAxes("mask", ("rows", "tokens"), "mask"))
    outputs = [TensorAxes("embeddings", ("rows", "tokens", encoder.width))]
    if encoder.pooled_width:
        outputs.append(TensorAxes("pooled", ("rows", encoder.pooled_width)))
    sizes = {"rows": 2, "tokens": encoder.max_tokens}
    return GraphSpec(name, "encode", tuple(inputs), tuple(outputs), sizes, token_range=encoder.config["vocab_size"])


def _denoiser_graphs(spec: BackboneSpec) -> list[GraphSpec]:
    """Once per request, then the step; widths are read off the networks, built without weights."""
    views, size = spec.geometry.views, spec.latent_size
    with torch.device("meta"):
        network = network_builders(spec)["denoiser"]()
        modules = {name: build_graph_module(name, spec, network) for name in request_graphs(spec)}
        embeddings, pooled = torch.empty(1, 1, spec.text.width), torch.empty(1, spec.text.pooled_width)
        widths = {CONTEXT: modules[CONTEXT](embeddings).shape[-1]}
        if ADDED in modules:
            widths[ADDED] = modules[ADDED](pooled, torch.empty(1, 6)).shape[-1]
        if MODULATIONS in modules:
            widths[MODULATIONS] = modules[MODULATIONS](pooled, torch.empty(1)).shape[-1]
    latents = (spec.latent_channels, size, size)
    text = TensorAxes("embeddings", ("rows", "tokens", spec.text.width))
    pooled_text = TensorAxes("pooled", ("rows", spec.text.pooled_width))
    steps = TensorAxes("timesteps", ("steps",), "timestep")
    request_inputs = {
        CONTEXT: (text,),
        ADDED: (pooled_text, TensorAxes("sizes", ("rows", 6))),
        MODULATIONS: (pooled_text, steps),
    }
    request_outputs = {
        CONTEXT: TensorAxes("context", ("rows", "tokens", widths[CONTEXT])),
        ADDED: TensorAxes("added", ("rows", widths.get(ADDED, 0))),
        MODULATIONS: TensorAxes("modulations", ("rows", "steps", widths.get(MODULATIONS, 0))),
    }
    step_inputs = {
        "latents": TensorAxes("latents", ("rows", views, *latents)),
        "plucker": TensorAxes("plucker", ("rows", views, PLUCKER_CHANNELS, size, size)),
        "timesteps": TensorAxes("timesteps", ("rows",), "timestep"),
        "context": request_outputs[CONTEXT],
        "kept": TensorAxes("kept", ("rows", "tokens")),
        "modulations": TensorAxes("modulations", ("rows", widths.get(MODULATIONS, 0))),
        "condition_latents": TensorAxes("condition_latents", ("rows", *latents)),
        "added": request_outputs[ADDED],
    }
    every_size = {"rows": 2, "tokens": spec.text.tokens, "steps": _MANY_STEPS}

    def graph(name: str, inputs: tuple[TensorAxes, ...], output: TensorAxes) -> GraphSpec:
        free = {axis for tensor in inputs for axis in tensor.axes}
        sizes = {axis: length for axis, length in every_size.items() if axis in free}
        times = spec.schedule.num_train_timesteps
        return GraphSpec(name, "denoise", inputs, (output,), sizes, timestep_range=times)

    prediction = TensorAxes("prediction", ("rows", views, *latents))
    step = graph(STEP, tuple(step_inputs[name] for name in step_input_names(spec)), prediction)
    return [*(graph(name, request_inputs[name], request_outputs[name]) for name in request_graphs(spec)), step]
