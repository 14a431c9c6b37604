"""Whole guided PixArt sampling runs of the reference, on the very noise it drew, from the library's public pieces."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from diffsplat.backbones import SD15
from diffsplat.denoisers.pixart import PixArtStep, build_network
from diffsplat.denoisers.pixart_text import PixArtTextContext
from diffsplat.denoisers.view_inputs import split_views, stock_config
from diffsplat.geometry.cameras import generated_view_cameras, latent_plucker, plucker_rays
from diffsplat.images.vae_encoder import ImageEncoder
from diffsplat.sampling.guidance import guidance_scales, guide, needs_guidance
from diffsplat.sampling.schedulers import build_sampler, model_input, needs_noise, sampler_step
from diffsplat.text.features import batch_contexts

PARTS = ["pipe_pixart_alpha_text", "pipe_pixart_sigma_text", "pipe_pixart_sigma_image"]


@pytest.mark.parametrize("part", PARTS)
def test_sampling(golden, assert_close, noise_schedule, part):
    file = golden(part)
    config = file.config
    views = config["num_views"]
    transformer = build_network(stock_config(config["net"]), views).eval().requires_grad_(False)
    transformer.load_state_dict(file.weights("transformer"))  # strict
    inputs = []
    transformer.pos_embed.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    context_graph, step_graph = PixArtTextContext(transformer), PixArtStep(transformer, views)
    condition = step_graph.condition_views
    assert condition == config["net"]["view_concat_condition"]
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
        full = torch.cat([full[:condition], full])  # the condition view has the rays of view 0
        assert_close(full.repeat(objects, 1, 1, 1)[: len(given["plucker"])], given["plucker"], f"{case} plucker")
        scales = guidance_scales(
            options["guidance_scale"],
            views,
            options.get("triangle_cfg_scaling", False),
            options.get("min_guidance_scale", 1.0),
        ).expand(objects, -1)
        guided = needs_guidance(scales)
        prompts = ("negative_prompt", "prompt") if guided else ("prompt",)
        rows = len(prompts) * objects
        rays = latent_plucker(cameras, geometry, first.shape[-1]).expand(rows, -1, -1, -1, -1)
        # every text by itself and at its own length, as requests of different callers come together
        contexts = []
        for name in prompts:
            texts, masks = given[f"{name}_embeds"], given[f"{name}_attention_mask"]
            for text, mask in zip(texts, masks, strict=True):
                contexts += [context_graph(text[mask != 0][None])[0]] * (objects // len(texts))
        extra = list(batch_contexts(contexts))
        if condition:
            vae = AutoencoderKL(**config["vae_config"]).eval().requires_grad_(False)
            vae.load_state_dict(file.weights("vae"))  # strict
            latents = ImageEncoder(vae)(given["image"].flatten(0, 1))
            extra.append(torch.cat([torch.zeros_like(latents), latents][-len(prompts) :]))
        scheduler, steps = options["scheduler_type"], options["num_inference_steps"]
        table = build_sampler(schedule, scheduler, steps, options.get("eta") or 0.0)
        assert_close(table.timesteps, out["timesteps"], f"{case} timesteps")

        x, x0 = first * table.init_sigma, None
        assert_close(x.flatten(0, 1), out["initial_latents"], f"{case} initial latents")
        for k, (time, coeffs) in enumerate(zip(table.timesteps, table.coeffs, strict=True)):
            coeffs = coeffs.expand(objects, -1)
            seen = model_input(x, coeffs).repeat(len(prompts), 1, 1, 1, 1)
            inputs.clear()
            prediction = step_graph(seen, rays, time.expand(rows), *extra)
            (tall,) = inputs
            if k == 0:
                network_input = split_views(tall, views + condition).flatten(0, 1)
                assert_close(network_input, out["first_network_input"], f"{case} network input")
            if guided:
                prediction = guide(*prediction.chunk(2), scales)
            assert_close(prediction.flatten(0, 1), out["guided_model_output"][k], f"{case} step {k} prediction")
            # the last step of the SDE solver draws noise that has no weight
            noise = noises[f"scheduler step {k}"] if needs_noise(coeffs) else None
            x, x0 = sampler_step(x, prediction, x0, noise, coeffs)
            assert_close(x.flatten(0, 1), out["latents_per_step"][k], f"{case} step {k} latents")
