"""What the graphs of a denoiser take: once per request, and at every step. Imports neither diffusers nor transformers.

    text features, timesteps -> prepare -> RequestInputs                       once per request
    requests, their steps -> join_rows -> denoiser graph -> prediction         every step

`prepare` takes tensors of the host and moves them to the graphs' device; what it returns lies there. `join_rows` runs
when requests join or leave: it neither moves a tensor nor waits for one.

Axes: R rows (request, guidance branch), V views, L text tokens, P width of the text context, T steps of a schedule.

    family   once per request                                                       every step, after latents, plucker
    unet     denoiser_context; denoiser_added if the model uses pooled text (SDXL)   timesteps, context (, added)
    pixart   denoiser_context, of the unmasked tokens                                timesteps, context, kept
    sd3      denoiser_context, denoiser_modulations for the whole schedule           modulations, context

An image model's step also takes `condition_latents`; a bundle with ControlNets takes `residuals`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.backends.transfer import to_device
from diffsplat.graph import Graph
from diffsplat.text.features import TextFeatures, batch_contexts, kept_tokens_first

CONTEXT, ADDED, MODULATIONS, STEP = "denoiser_context", "denoiser_added", "denoiser_modulations", "denoiser"


class RequestInputs(NamedTuple):
    """Inputs of the denoiser that one request computes once."""

    constant: dict[str, Tensor]  # name -> [rows, ...], the same at every step
    stepwise: dict[str, Tensor]  # name -> [rows, T, ...], one entry for every step
    lengths: tuple[int, ...] = ()  # text tokens of each row, where texts of different lengths share a batch


@dataclass(frozen=True)
class Family:
    """Everything that differs between the families of denoisers; adding a family means adding one of these."""

    module: str  # defines `build_network` and `GRAPHS`; importing it pulls in diffusers
    official_class: str  # of diffusers, as in the `config.json` of official checkpoints
    official_folder: str  # of the denoiser in an official checkpoint
    request_graphs: tuple[str, ...]  # that run once per request; ADDED only where pooled text is used
    step_inputs: tuple[str, ...]  # of the step graph, in order
    takes_pooled_text: Callable[[BackboneSpec], bool]
    prepare: Callable[[BackboneSpec, Mapping[str, Graph], TextFeatures, Tensor], RequestInputs]


def _prepare_unet(
    spec: BackboneSpec, graphs: Mapping[str, Graph], features: TextFeatures, timesteps: Tensor
) -> RequestInputs:
    constant = {"context": _run(graphs[CONTEXT], features.embeddings)}
    if takes_pooled_text(spec):
        sizes = size_numbers(len(features.pooled), spec.image_size)
        constant["added"] = _run(graphs[ADDED], features.pooled, sizes)
    return RequestInputs(constant, {})


def _prepare_pixart(
    spec: BackboneSpec, graphs: Mapping[str, Graph], features: TextFeatures, timesteps: Tensor
) -> RequestInputs:
    text, lengths = kept_tokens_first(features.embeddings, features.mask)  # no view attends to the other tokens
    return RequestInputs({"context": _run(graphs[CONTEXT], text)}, {}, lengths)


def _prepare_sd3(
    spec: BackboneSpec, graphs: Mapping[str, Graph], features: TextFeatures, timesteps: Tensor
) -> RequestInputs:
    modulations = _run(graphs[MODULATIONS], features.pooled, timesteps.float())  # [R, T, M]
    return RequestInputs({"context": _run(graphs[CONTEXT], features.embeddings)}, {"modulations": modulations})


def _run(graph: Graph, *inputs: Tensor) -> Tensor:
    """A graph with one output on tensors of the host; the output stays on the graph's device."""
    output: Tensor = graph(*(to_device(tensor, graph.device) for tensor in inputs))
    return output


FAMILIES = {
    "unet": Family(
        module="diffsplat.denoisers.unet",
        official_class="UNet2DConditionModel",
        official_folder="unet_ema",
        request_graphs=(CONTEXT, ADDED),
        step_inputs=("latents", "plucker", "timesteps", "context"),
        takes_pooled_text=lambda spec: spec.denoiser.get("addition_embed_type") is not None,
        prepare=_prepare_unet,
    ),
    "pixart": Family(
        module="diffsplat.denoisers.pixart",
        official_class="PixArtTransformer2DModel",
        official_folder="transformer_ema",
        request_graphs=(CONTEXT,),
        step_inputs=("latents", "plucker", "timesteps", "context", "kept"),
        takes_pooled_text=lambda spec: False,
        prepare=_prepare_pixart,
    ),
    "sd3": Family(
        module="diffsplat.denoisers.sd3",
        official_class="SD3Transformer2DModel",
        official_folder="transformer_ema",
        request_graphs=(CONTEXT, MODULATIONS),
        step_inputs=("latents", "plucker", "modulations", "context"),
        takes_pooled_text=lambda spec: True,
        prepare=_prepare_sd3,
    ),
}


def request_graphs(spec: BackboneSpec) -> tuple[str, ...]:
    """Graphs that run once per request."""
    graphs = FAMILIES[spec.family].request_graphs
    return graphs if takes_pooled_text(spec) else tuple(name for name in graphs if name != ADDED)


def takes_pooled_text(spec: BackboneSpec) -> bool:
    """Whether the denoiser takes pooled text as well as tokens."""
    return FAMILIES[spec.family].takes_pooled_text(spec)


def masks_padding(spec: BackboneSpec) -> bool:
    """Whether texts of different lengths may share a batch."""
    return "kept" in FAMILIES[spec.family].step_inputs


def step_input_names(spec: BackboneSpec) -> tuple[str, ...]:
    """Inputs of the step graph, in order."""
    names = FAMILIES[spec.family].step_inputs
    if spec.is_image_conditioned:
        names += ("condition_latents",)
    if ADDED in request_graphs(spec):
        names += ("added",)
    return (*names, "residuals") if spec.controls else names


def prepare(
    spec: BackboneSpec,
    graphs: Mapping[str, Graph],
    features: TextFeatures,
    timesteps: Tensor,
    condition_latents: Tensor | None = None,
) -> RequestInputs:
    """Everything about text, time and condition image that does not change from step to step.

    Args:
        spec: the backbone.
        graphs: those of `request_graphs`.
        features: of the request's rows, on the host.
        timesteps: [T] of its schedule, on the host; or [R, T], where every row has its own.
        condition_latents: [C, h, w] of the image, on the host; the unconditional row gets zeros. For image models only.

    Returns:
        Tensors on the device of the graphs.
    """
    inputs = FAMILIES[spec.family].prepare(spec, graphs, features, timesteps)
    if condition_latents is not None:
        rows = torch.zeros(len(features.embeddings), *condition_latents.shape)
        rows[-1] = condition_latents
        inputs.constant["condition_latents"] = to_device(rows, inputs.constant["context"].device)
    return inputs


def size_numbers(rows: int, image_size: int) -> Tensor:
    """SDXL's (original height, width, top, left, target height, width) as published: a whole view, [R, 6]."""
    size = float(image_size)
    return torch.tensor([size, size, 0.0, 0.0, size, size]).expand(rows, -1)


def join_rows(requests: Sequence[RequestInputs], tokens: int | None = None) -> dict[str, Tensor]:
    """Constant inputs of several requests as one batch. Texts of different lengths need a family that masks padding.

    Args:
        requests: of one `batch_key`.
        tokens: length to which such texts are padded; by default that of the longest one.
    """
    joined = {}
    for name in requests[0].constant:
        parts = [request.constant[name] for request in requests]
        if name == "context" and requests[0].lengths:
            rows = [row for part in parts for row in part.unbind(0)]
            lengths = [length for request in requests for length in request.lengths]
            text = batch_contexts([row[:length] for row, length in zip(rows, lengths, strict=True)], tokens)
            joined["context"], joined["kept"] = text.tokens, text.kept.float()
        else:
            joined[name] = torch.cat(parts)
    return joined


def batch_key(inputs: RequestInputs) -> int:
    """Requests of equal keys may share a batch: the number of text tokens, 0 where texts of any length may."""
    return 0 if inputs.lengths else inputs.constant["context"].shape[1]
