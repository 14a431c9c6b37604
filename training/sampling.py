"""Prompts -> latents in one process with torch networks, for looking at a denoiser while it is trained."""

import torch
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.denoisers.unet import DenoiserStep, TextContext
from diffsplat.geometry.cameras import generated_view_cameras, latent_plucker
from diffsplat.sampling.guidance import guidance_scales, guide
from diffsplat.sampling.schedulers import build_sampler, model_input, needs_noise, sampler_step
from diffsplat.text.tokenizer import Tokenizer


@torch.no_grad()
def generate_latents(
    step: DenoiserStep,
    context: TextContext,
    text_encoder: nn.Module,
    tokenizer: Tokenizer,
    spec: BackboneSpec,
    prompts: list[str],
    generator: torch.Generator,
    steps: int | None = None,
    elevation_deg: float | None = None,
) -> Tensor:
    """Sample one object per prompt with the spec's scheduler and guidance.

    Args:
        step: The denoiser.
        context: Its text keys and values.
        text_encoder: Token ids to embeddings.
        tokenizer: Prompts to token ids.
        spec: Defaults of a request, shapes and schedule.
        prompts: P of them.
        generator: All noise, on the CPU.
        steps: Denoiser calls; the spec's by default.
        elevation_deg: Of the four views, positive = above; the spec's by default.

    Returns:
        [P, V, C, h, w] in diffusion space.
    """
    device = next(step.parameters()).device
    views, rows = spec.geometry.views, len(prompts)
    table = build_sampler(spec.schedule, spec.scheduler, steps or spec.steps, spec.eta)
    elevation = spec.elevation_deg if elevation_deg is None else elevation_deg
    assert elevation is not None
    cameras = generated_view_cameras(elevation, spec.distance, views)
    plucker = latent_plucker(cameras, spec.geometry, spec.latent_size).to(device).expand(2 * rows, -1, -1, -1, -1)
    input_ids = tokenizer.encode([""] * rows + prompts).input_ids.to(device)
    keys_values = context(text_encoder(input_ids))  # [2P, L, width]: without text first
    scales = guidance_scales(spec.guidance_scale, views, triangle=False, min_guidance_scale=1.0)
    shape = (rows, views, spec.latent_channels, spec.latent_size, spec.latent_size)
    x = table.init_sigma * torch.randn(shape, generator=generator).to(device)
    x0 = None
    for timestep, coefficients in zip(table.timesteps, table.coeffs, strict=True):
        coeffs = coefficients.expand(rows, -1)
        seen = model_input(x, coeffs).to(x)
        prediction = step(torch.cat([seen, seen]), plucker, timestep.to(device).expand(2 * rows), keys_values)
        uncond, cond = prediction.chunk(2)
        noise = torch.randn(shape, generator=generator).to(device) if needs_noise(coeffs) else None
        x, x0 = sampler_step(x, guide(uncond, cond, scales), x0, noise, coeffs)
    return x
