"""Text and images -> latents by the loop that is served, to look at a denoiser while it is trained."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from diffsplat_client.request import GenerationRequest
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.spec import ControlType
from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.transfer import to_host
from diffsplat.denoisers.control_inputs import control_graphs
from diffsplat.denoisers.graph_inputs import STEP, request_graphs
from diffsplat.networks import build_graph_module
from diffsplat.stages.denoise import DenoiseStage
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.image_features import ImageFeatures
from diffsplat.stages.work import DenoiseWork
from diffsplat.text.features import TextFeatures

_SEEDS = 2**32


class Asked(NamedTuple):
    """What one object is asked for."""

    prompt: str
    text: TextFeatures  # two rows on the host: prompt, null text
    elevation_deg: float | None = None  # of its four views; None: the spec's default
    condition_latents: Tensor | None = None  # [C, h, w] of its image, for image models
    control_map: Tensor | None = None  # [3, S, S] for a ControlNet


def generate_latents(
    denoiser: nn.Module,
    spec: BackboneSpec,
    objects: Sequence[Asked],
    generator: torch.Generator,
    steps: int | None = None,
    guidance_scale: float | None = None,
    controlnets: Mapping[ControlType, nn.Module] | None = None,
) -> Tensor:
    """Sample objects together, with the spec's scheduler.

    Args:
        denoiser: A network of `build_denoiser`, on any device, in evaluation mode.
        spec: Defaults of a request, shapes and schedule.
        objects: P of them.
        generator: Draws a seed for every object.
        steps: Denoiser calls; the spec's by default.
        guidance_scale: The spec's by default.
        controlnets: Those of `spec.controls`; objects with a control map are steered by the only one.

    Returns:
        [P, V, C, h, w] in diffusion space, on the CPU.
    """
    controlnets = controlnets or {}
    owners = {name: denoiser for name in (*request_graphs(spec), STEP)}
    owners |= {name: network for kind, network in controlnets.items() for name in control_graphs(spec, kind)}
    graphs = {name: TorchGraph(name, build_graph_module(name, spec, network)) for name, network in owners.items()}
    stage = DenoiseStage(spec, graphs)
    seeds = torch.randint(_SEEDS, (len(objects),), generator=generator).tolist()
    jobs = []
    for asked, seed in zip(objects, seeds, strict=True):
        request = GenerationRequest(
            asked.prompt, seed=seed, steps=steps, guidance_scale=guidance_scale, elevation_deg=asked.elevation_deg
        ).with_defaults(**spec.request_defaults)
        images = ImageFeatures(None if asked.condition_latents is None else to_host(asked.condition_latents))
        if asked.control_map is not None:
            (kind,) = controlnets
            request = dataclasses.replace(request, control_type=kind)
            images = ImageFeatures(hint=to_host(asked.control_map))
        text = TextFeatures(*(to_host(values.detach()) for values in asked.text))
        jobs.append(stage.start(DenoiseWork(Envelope(request), text, images)))
    for _ in range(jobs[0].steps):
        stage.step(jobs)
    return to_host(torch.stack([job.latents for job in jobs]))
