"""Whole guided sampling runs of the reference's SD3, on the very noise it drew, from the library's public pieces."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from diffsplat.backbones import SD15
from diffsplat.denoisers.sd3 import SD3Context, SD3Modulations, SD3Step, build_network
from diffsplat.denoisers.view_inputs import network_input, stock_config
from diffsplat.geometry.cameras import generated_view_cameras, latent_plucker
from diffsplat.sampling.guidance import guidance_scales, guide, needs_guidance
from diffsplat.sampling.schedulers import build_sampler, model_input, needs_noise, sampler_step

PARTS = ["pipe_sd3_text", "pipe_sd3_image"]


@pytest.mark.parametrize("part", PARTS)
def test_sampling(part, golden, assert_close, noise_schedule):
    file = golden(part)
    config = file.config
    views = config["num_views"]
    transformer = build_network(stock_config(config["net"]), views).eval().requires_grad_(False)
    transformer.load_state_dict(file.weights("transformer"))  # strict
    step_graph = SD3Step(transformer, views)
    geometry = replace(SD15.geometry, grid_size=config["plucker_res"])
    schedule = noise_schedule(config["scheduler_config_of_base_model"])
    for case in file.cases:
        options = config["cases"][case]
        given, out = file.case_in(case), file.out(case)
        noises = {
            use: given[f"noise_{k:02d}"].unflatten(0, (-1, views)) for k, use in enumerate(config["noise_order"][case])
        }
        first = noises["initial latents"]
        objects = len(first)
        scales = guidance_scales(
            options["guidance_scale"],
            views,
            options.get("triangle_cfg_scaling", False),
            options.get("min_guidance_scale", 1.0),
        )
        guided = needs_guidance(scales)
        branches = 1 + guided

        cameras = generated_view_cameras(options["elevation"], options.get("distance", SD15.distance), views)
        rays = latent_plucker(cameras, geometry, first.shape[-1]).expand(branches * objects, -1, -1, -1, -1)
        condition = None
        if "image" in given:
            condition = condition_latents(file.weights("vae"), config["vae_config"], given["image"][:, 0])
            condition = torch.cat([torch.zeros_like(condition), condition]) if guided else condition
        table = build_sampler(schedule, options["scheduler_type"], options["num_inference_steps"], eta=0.0)
        assert_close(table.timesteps, out["timesteps"], f"{case} timesteps")
        text, pooled = (
            torch.cat([given[name].repeat_interleave(objects // len(given[name]), dim=0) for name in names])
            for names in (
                ("negative_prompt_embeds", "prompt_embeds")[-branches:],
                ("negative_pooled_prompt_embeds", "pooled_prompt_embeds")[-branches:],
            )
        )
        context, modulations = SD3Context(transformer)(text), SD3Modulations(transformer)(pooled, table.timesteps)

        x, x0 = first * table.init_sigma, None
        assert_close(x.flatten(0, 1), out["initial_latents"], f"{case} initial latents")
        for k, coeffs in enumerate(table.coeffs):
            coeffs = coeffs.expand(objects, -1)
            seen = model_input(x, coeffs).repeat(branches, 1, 1, 1, 1)
            if k == 0:
                whole = network_input(seen, rays, condition).flatten(0, 1)
                assert_close(whole, out["first_network_input"], f"{case} network input")
            prediction = step_graph(seen, rays, modulations[:, k], context, condition)
            if guided:
                prediction = guide(*prediction.chunk(2), scales.expand(objects, -1))
            assert_close(prediction.flatten(0, 1), out["guided_model_output"][k], f"{case} step {k} prediction")
            # the last step of the SDE solver draws noise that has no weight
            noise = noises[f"scheduler step {k}"] if needs_noise(coeffs) else None
            x, x0 = sampler_step(x, prediction, x0, noise, coeffs)
            assert_close(x.flatten(0, 1), out["latents_per_step"][k], f"{case} step {k} latents")
        assert out["num_network_calls"] == len(table.timesteps)


def condition_latents(weights: dict[str, Tensor], config: dict, image: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] -> [B, C, h, w]: posterior mean times scale, shift not subtracted (quirk kept)."""
    vae = AutoencoderKL(**config).eval().requires_grad_(False)
    vae.load_state_dict(weights)  # strict
    return vae.encode(2 * image - 1).latent_dist.mean * vae.config.scaling_factor
