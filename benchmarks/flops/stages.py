"""What a request runs, on the meta device in bf16: the exported graphs, and networks that are not exported.

Graphs get the inputs of `export.graphs` at the sizes of one guided request: an unconditional and a conditional row,
four views, and with an image model the condition view among them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.flops.counter import Counted, Work, count
from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.spec import ControlType
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.denoisers.control_inputs import control_graphs
from diffsplat.denoisers.graph_inputs import STEP, request_graphs
from diffsplat.networks import build_graph_module, network_builders
from diffsplat.splats.gsrecon import GSRECON
from export.graph_spec import GraphSpec
from export.graphs import graph_specs

DTYPE = torch.bfloat16
CONTROL: ControlType = "depth"  # the ControlNets of all kinds are the same network
TINY_DECODER = "tiny_decoder"

Runs = Literal["request", "step", "option", "apart"]


class Stage(NamedTuple):
    """One graph or network of a backbone."""

    name: str
    runs: Runs  # once per plain request, every step of it, where a request asks for it, or in no request of this kind
    counted: Counted


class Settings(NamedTuple):
    """What decides how much a request costs."""

    steps: int = 20
    prompt_tokens: int = 16  # of the prompt where padding is dropped; the negative prompt is empty


def equipped(spec: BackboneSpec) -> BackboneSpec:
    """The spec with everything optional: image encoder, ElevEst, a ControlNet."""
    controls: tuple[ControlType, ...] = (CONTROL,) if spec.family == "unet" and not spec.is_image_conditioned else ()
    return replace(spec, image_encoder=True, elevest={}, controls=controls)


def stages(spec: BackboneSpec, settings: Settings) -> Iterator[Stage]:
    """Every graph and network of a full-size backbone, in the order in which a request meets them."""
    full = equipped(spec)
    networks: dict[str, nn.Module] = {}
    for graph in graph_specs(full):
        owner = graph.network(full)
        if owner not in networks:
            networks[owner] = meta_network(full, owner)
        module = build_graph_module(graph.name, full, networks[owner])
        yield Stage(graph.name, _runs(full, graph.name), count(module, *meta_inputs(full, graph, settings)))
    gsvae: Any = networks["gsvae"]
    latents = (1, full.geometry.views, full.latent_channels, full.latent_size, full.latent_size)
    if gsvae.tiny_decoder is not None:
        counted = count(gsvae.decode_tiny, torch.empty(latents, dtype=DTYPE, device="meta"))
        yield Stage(TINY_DECODER, "apart", counted)


def _runs(spec: BackboneSpec, name: str) -> Runs:
    if name in (STEP, GSRECON):
        return "step" if name == STEP else "apart"
    optional = [graph for kind in spec.controls for graph in control_graphs(spec, kind)]
    optional += ["elevest", *(() if spec.is_image_conditioned else ("image_encoder",))]
    return "option" if name in optional else "request"


def meta_network(spec: BackboneSpec, name: str) -> nn.Module:
    """A network of `network_builders`, without memory for its weights."""
    with torch.device("meta"):
        network = network_builders(spec)[name]()
    return nn.Module.to(network, DTYPE)  # diffusers' own `to` warns about modules kept in float32; there are none here


def request_sizes(spec: BackboneSpec, graph: GraphSpec, settings: Settings) -> dict[str, int]:
    """Sizes of a graph's free axes in one guided request."""
    sizes: dict[str, int] = {**graph.serving_sizes, "steps": settings.steps}
    if spec.text.encoders[-1].masked:  # padding is dropped; what is left is as long as the longer one of the two texts
        sizes["tokens"] = settings.prompt_tokens
    if spec.text.zero_negative and graph.name.startswith(TEXT_ENCODER):  # an empty negative prompt needs no encoder
        sizes["rows"] = 1
    return sizes


def meta_inputs(spec: BackboneSpec, graph: GraphSpec, settings: Settings) -> tuple[Tensor, ...]:
    """Inputs of a graph as one guided request has them."""
    sizes = request_sizes(spec, graph, settings)
    types = {"token": torch.int64, "mask": torch.int64, "timestep": torch.float32}
    return tuple(
        torch.empty(
            [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes],
            dtype=types.get(tensor.sample, DTYPE),
            device="meta",
        )
        for tensor in graph.inputs
    )


class Request(NamedTuple):
    """Work of a request without options, by its parts."""

    once: Work  # of the denoiser, once per request
    step: Work
    denoiser: Work  # all steps, and what is computed once for them
    total: Work  # with text encoders, condition image and splat decoder
    read_twice: int  # numbers in parameters that both a step and the part before it read


def request_work(spec: BackboneSpec, counted: Mapping[str, Stage], settings: Settings) -> Request:
    """Add up the stages."""
    before = [counted[name].counted for name in request_graphs(spec)]
    once = sum((part.work for part in before), Work())
    step = counted[STEP].counted
    denoiser = once + step.work.times(settings.steps)
    others = (
        stage.counted.work
        for name, stage in counted.items()
        if stage.runs == "request" and name not in request_graphs(spec)
    )
    read_before = frozenset().union(*(part.parameters for part in before))
    shared = sum(parameter.numel() for parameter in read_before & step.parameters)
    return Request(once, step.work, denoiser, sum(others, denoiser), shared)
