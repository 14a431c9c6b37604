"""Whole guided sampling runs of the reference, on the very noise it drew, from the library's public pieces."""

from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel

from diffsplat.backbones import SD15
from diffsplat.cameras import generated_view_cameras, latent_plucker, plucker_rays
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


def test_sampling(golden, assert_close, noise_schedule):
    file = golden("pipe_sd_text")
    config = file.config
    views = config["num_views"]
    unet = UNet2DConditionModel(**stock_unet_config(config["net"])).eval().requires_grad_(False)
    set_multiview_attention(unet, views)
    unet.load_state_dict(file.weights("unet"))  # strict
    context_graph, step_graph = TextContext(unet), DenoiserStep(unet, views)
    geometry = replace(SD15.geometry, grid_size=config["plucker_res"])
    for case in file.cases:
        options = config["cases"][case]
        schedule = noise_schedule(config["scheduler_config_of_base_model"], options.get("prediction_type"))
        given, out = file.case_in(case), file.out(case)
        order = config["noise_order"][case]
        noises = {use: given[f"noise_{k:02d}"].unflatten(0, (-1, views)) for k, use in enumerate(order)}
        first = noises["initial latents"]
        objects = len(first)

        cameras = generated_view_cameras(options["elevation"], options.get("distance", SD15.distance), views)
        full = plucker_rays(*cameras, geometry.grid_size, geometry.grid_size, geometry.ray_pixel_rule)
        assert_close(full.repeat(objects, 1, 1, 1)[: len(given["plucker"])], given["plucker"], f"{case} plucker")
        rays = latent_plucker(cameras, geometry, first.shape[-1]).expand(objects, -1, -1, -1, -1)
        scales = guidance_scales(
            options["guidance_scale"],
            views,
            options.get("triangle_cfg_scaling", False),
            options.get("min_guidance_scale", 1.0),
        )
        guided = needs_guidance(scales)
        names = ("negative_prompt_embeds", "prompt_embeds") if guided else ("prompt_embeds",)
        branches = len(names)
        text = torch.cat([given[name].repeat_interleave(objects // len(given[name]), dim=0) for name in names])
        context = context_graph(text)
        scheduler, steps = options["scheduler_type"], options["num_inference_steps"]
        table = build_sampler(schedule, scheduler, steps, options.get("eta") or 0.0)
        assert_close(table.timesteps, out["timesteps"], f"{case} timesteps")

        x, x0 = first * table.init_sigma, None
        assert_close(x.flatten(0, 1), out["initial_latents"], f"{case} initial latents")
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
            noise = noises[f"scheduler step {k}"] if needs_noise(coeffs) else None
            x, x0 = sampler_step(x, prediction, x0, noise, coeffs)
            assert_close(x.flatten(0, 1), out["latents_per_step"][k], f"{case} step {k} latents")
