"""One face for the denoisers of all families: their graphs, what a request computes once, what a step is given.

    text features, timesteps -> prepare -> RequestInputs                       once per request
    requests, their steps -> join_rows -> denoiser graph -> prediction         every step

Axes: R rows (request, guidance branch), V views, L text tokens, P width of the text context, T steps of a schedule.

    family   once per request                                                       every step, behind latents, plucker
    unet     denoiser_context; denoiser_added where pooled text counts (SDXL)        timesteps, context (, added)
    pixart   denoiser_context, of the tokens that count                              timesteps, context, kept
    sd3      denoiser_context, denoiser_modulations for the whole schedule           modulations, context

An image model's step also takes `condition_latents`; a bundle with ControlNets takes `residuals`.
"""

import importlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.runtime import Graph
from diffsplat.text_features import TextFeatures, batch_contexts, drop_masked_tokens

CONTEXT, ADDED, MODULATIONS, STEP = "denoiser_context", "denoiser_added", "denoiser_modulations", "denoiser"


class RequestInputs(NamedTuple):
    """Inputs of the denoiser that one request computes once."""

    constant: dict[str, Tensor]  # name -> [rows, ...], the same at every step
    stepwise: dict[str, Tensor]  # name -> [rows, T, ...], one entry for every step


def request_graphs(spec: BackboneSpec) -> tuple[str, ...]:
    """Graphs that run once per request."""
    if spec.family == "sd3":
        return (CONTEXT, MODULATIONS)
    return (CONTEXT, ADDED) if takes_pooled_text(spec) else (CONTEXT,)


def takes_pooled_text(spec: BackboneSpec) -> bool:
    """Whether pooled text reaches the denoiser beside the tokens."""
    return spec.family == "sd3" or spec.denoiser.get("addition_embed_type") is not None


def step_input_names(spec: BackboneSpec) -> tuple[str, ...]:
    """Inputs of the step graph, in order."""
    names = {
        "unet": ("latents", "plucker", "timesteps", "context"),
        "pixart": ("latents", "plucker", "timesteps", "context", "kept"),
        "sd3": ("latents", "plucker", "modulations", "context"),
    }[spec.family]
    if spec.is_image_conditioned:
        names += ("condition_latents",)
    if spec.family == "unet" and takes_pooled_text(spec):
        names += ("added",)
    return (*names, "residuals") if spec.controls else names


def build_denoiser(spec: BackboneSpec) -> nn.Module:
    """The stock network of a backbone, for many views, random weights; official state-dict names."""
    return _family(spec).build_network(spec.denoiser, spec.geometry.views)


def denoiser_graph(name: str, spec: BackboneSpec, network: nn.Module) -> nn.Module:
    """One of the graphs of a network of `build_denoiser`, sharing its weights."""
    if name == STEP and spec.controls:
        from diffsplat.controlnet import ControlledDenoiserStep

        return ControlledDenoiserStep(network, spec.geometry.views)
    made = _family(spec).GRAPHS[name]
    return made(network, spec.geometry.views) if name == STEP else made(network)


def _family(spec: BackboneSpec) -> Any:
    """Module of the family; imported when networks are built, since it pulls in diffusers."""
    return importlib.import_module({"unet": "diffsplat.multiview"}.get(spec.family, f"diffsplat.{spec.family}"))


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
        features: of the request's rows.
        timesteps: [T] of its schedule.
        condition_latents: [C, h, w] of the image; the unconditional row gets zeros. For image models alone.
    """
    inputs = _of_text_and_time(spec, graphs, features, timesteps)
    if condition_latents is not None:
        rows = torch.zeros(len(features.embeddings), *condition_latents.shape)
        rows[-1] = condition_latents
        inputs.constant["condition_latents"] = rows
    return inputs


def _of_text_and_time(
    spec: BackboneSpec, graphs: Mapping[str, Graph], features: TextFeatures, timesteps: Tensor
) -> RequestInputs:
    embeddings, mask, pooled = features
    if spec.family == "sd3":
        modulations = graphs[MODULATIONS](pooled, timesteps.float())  # [R, T, M]
        return RequestInputs({"context": graphs[CONTEXT](embeddings)}, {"modulations": modulations})
    if spec.family == "pixart":  # no view attends to the other tokens: they are not even projected
        text = drop_masked_tokens(embeddings, mask)
        return RequestInputs({"context": graphs[CONTEXT](text.tokens), "kept": text.kept.float()}, {})
    constant = {"context": graphs[CONTEXT](embeddings)}
    if takes_pooled_text(spec):
        constant["added"] = graphs[ADDED](pooled, size_numbers(len(pooled), spec.geometry.grid_size))
    return RequestInputs(constant, {})


def size_numbers(rows: int, grid_size: int) -> Tensor:
    """SDXL's (original height, width, top, left, target height, width) as published: a whole view, [R, 6]."""
    size = float(grid_size)
    return torch.tensor([size, size, 0.0, 0.0, size, size]).expand(rows, -1)


def join_rows(requests: Sequence[RequestInputs]) -> dict[str, Tensor]:
    """Constant inputs of several requests as one batch. Texts of different lengths need a family that masks padding."""
    joined = {}
    for name in requests[0].constant:
        parts = [request.constant[name] for request in requests]
        if name == "context" and "kept" in requests[0].constant:
            kept = chain.from_iterable(request.constant["kept"] for request in requests)
            text = batch_contexts([row[keep != 0] for row, keep in zip(chain(*parts), kept, strict=True)])
            joined["context"], joined["kept"] = text.tokens, text.kept.float()
        elif name != "kept":
            joined[name] = torch.cat(parts)
    return joined


def batch_key(inputs: RequestInputs) -> int:
    """Requests of equal keys may share a batch: the number of text tokens, 0 where texts of any length may."""
    return 0 if "kept" in inputs.constant else inputs.constant["context"].shape[1]
