"""Prompts -> latents by the loop that is served, to look at a denoiser while it is trained."""

from functools import partial

import torch
from diffsplat_client.request import GenerationRequest
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.transfer import call_from_host, to_host
from diffsplat.denoisers.graph_inputs import STEP, request_graphs
from diffsplat.networks import build_graph_module
from diffsplat.stages.denoise import DenoiseStage
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.work import DenoiseWork
from diffsplat.text.features import PromptEncoder
from diffsplat.text.tokenizer import Tokenizer

_SEEDS = 2**32


def generate_latents(
    denoiser: nn.Module,
    text_encoder: nn.Module,
    tokenizer: Tokenizer,
    spec: BackboneSpec,
    prompts: list[str],
    generator: torch.Generator,
    steps: int | None = None,
) -> Tensor:
    """Sample one object per prompt with the spec's scheduler, guidance and elevation.

    Args:
        denoiser: A network of `build_denoiser`, on any device, in evaluation mode.
        text_encoder: Of the spec's only text encoder, on any device, in evaluation mode.
        tokenizer: Prompts to token ids.
        spec: Of a text backbone: defaults of a request, shapes and schedule.
        prompts: P of them.
        generator: Draws a seed for every prompt.
        steps: Denoiser calls; the spec's by default.

    Returns:
        [P, V, C, h, w] in diffusion space, on the CPU.
    """
    names = (*request_graphs(spec), STEP)
    stage = DenoiseStage(spec, {name: TorchGraph(name, build_graph_module(name, spec, denoiser)) for name in names})
    encode = partial(call_from_host, TorchGraph("text_encoder", text_encoder))
    encoder = PromptEncoder(spec.text, [tokenizer], [encode])
    seeds = torch.randint(_SEEDS, (len(prompts),), generator=generator).tolist()
    jobs = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        request = GenerationRequest(prompt, seed=seed, steps=steps).with_defaults(**spec.request_defaults)
        jobs.append(stage.start(DenoiseWork(Envelope(request), encoder.encode([prompt, None]).features)))
    for _ in range(jobs[0].steps):
        stage.step(jobs)
    return to_host(torch.stack([job.latents for job in jobs]))
