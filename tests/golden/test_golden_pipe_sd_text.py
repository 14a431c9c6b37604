"""Whole guided sampling runs of the reference, on the very noise it drew, from the library's public pieces."""

from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel

from diffsplat.backbones import BACKBONES
from diffsplat.cameras import generated_view_cameras, latent_plucker
from diffsplat.multiview import DenoiserStep, TextContext, set_multiview_attention, stock_unet_config
from diffsplat.samplers import (
    build_sampler,
    guidance_scales,
    guide,
    model_input,
    needs_guidance,
    needs_noise,
    sampler_step,
)


def test_sampling(golden, assert_close):
    file = golden("pipe_sd_text")
    config = file.config
    spec = BACKBONES[config["base"]]
    views = config["num_views"]
    unet = UNet2DConditionModel(**stock_unet_config(config["net"])).eval().requires_grad_(False)
    set_multiview_attention(unet, views)
    unet.load_state_dict(file.weights("unet"))  # strict
    context_graph, step_graph = TextContext(unet), DenoiserStep(unet, views)
    geometry = replace(spec.geometry, grid_size=config["plucker_res"])
    for case in file.cases:
        options = config["cases"][case]
        given, out = file.case_in(case), file.out(case)
        noises = [given[f"noise_{k:02d}"].unflatten(0, (-1, views)) for k in range(len(config["noise_order"][case]))]
        objects = len(noises[0])

        cameras = generated_view_cameras(options["elevation"], options.get("distance", spec.distance), views)
        rays = latent_plucker(cameras, geometry, noises[0].shape[-1]).expand(objects, -1, -1, -1, -1)
        scales = guidance_scales(
            options["guidance_scale"],
            views,
            options.get("triangle_cfg_scaling", False),
            options.get("min_guidance_scale", 1.0),
        )
        guided = needs_guidance(scales)
        text, branches = given["prompt_embeds"], 1
        if guided:
            text, branches = torch.cat([given["negative_prompt_embeds"], text]), 2
        context = context_graph(text)
        scheduler, steps = options["scheduler_type"], options["num_inference_steps"]
        table = build_sampler(spec.schedule, scheduler, steps, options.get("eta", 0.0))
        assert_close(table.timesteps, out["timesteps"], f"{case} timesteps")

        x, x0 = noises[0] * table.init_sigma, None
        assert_close(x.flatten(0, 1), out["initial_latents"], f"{case} initial latents")
        draws = iter(noises[1:])
        for k, (time, coeffs) in enumerate(zip(table.timesteps, table.coeffs, strict=True)):
            coeffs = coeffs.expand(objects, -1)
            seen = model_input(x, coeffs).repeat(branches, 1, 1, 1, 1)
            if k == 0:
                network_input = torch.cat([seen, rays.repeat(branches, 1, 1, 1, 1)], dim=2).flatten(0, 1)
                assert_close(network_input, out["first_network_input"], f"{case} network input")
            prediction = step_graph(seen, rays.repeat(branches, 1, 1, 1, 1), time.expand(branches * objects), context)
            if guided:
                prediction = guide(*prediction.chunk(2), scales.expand(objects, -1))
            assert_close(prediction.flatten(0, 1), out["guided_model_output"][k], f"{case} step {k} prediction")
            # the last step of the SDE solver draws noise that has no weight
            noise = next(draws) if needs_noise(coeffs) else None
            x, x0 = sampler_step(x, prediction, x0, noise, coeffs)
            assert_close(x.flatten(0, 1), out["latents_per_step"][k], f"{case} step {k} latents")
