"""Whole guided sampling runs of the reference, on the very noise it drew, from the library's public pieces.

Text, image and ControlNet models of the UNet family, SDXL's added embedding, and runs that start from Instant3D's blob.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor

from diffsplat.backbones import SD15
from diffsplat.denoisers.control_inputs import control_scales
from diffsplat.denoisers.controlnet import ControlledDenoiserStep, ControlStep, HintEncoder, controlnet_config
from diffsplat.denoisers.graph_inputs import size_numbers
from diffsplat.denoisers.shared_weights import AddedEmbedding
from diffsplat.denoisers.unet import DenoiserStep, TextContext, set_multiview_attention
from diffsplat.denoisers.view_inputs import stock_config
from diffsplat.geometry.cameras import generated_view_cameras, latent_plucker, plucker_rays
from diffsplat.images.vae_encoder import ImageEncoder
from diffsplat.sampling.blob_start import blob_views, late_start
from diffsplat.sampling.guidance import guidance_scales, guide, needs_guidance
from diffsplat.sampling.schedulers import build_sampler, model_input, needs_noise, sampler_step

PARTS = ("pipe_sd_text", "pipe_sd_image", "pipe_sdxl_text", "pipe_controlnet", "pipe_sd_instant3d_init")


class Networks:
    """The networks of one file with the reference's weights, loaded strictly."""

    def __init__(self, file: Any) -> None:
        config = file.config
        views = config["num_views"]
        net = stock_config(config["net"])
        unet = UNet2DConditionModel(**net).eval().requires_grad_(False)
        condition = int(config["net"]["view_concat_condition"])
        set_multiview_attention(unet, views + condition)
        unet.load_state_dict(file.weights("unet"))
        self.inputs: list[Tensor] = []  # what reaches the UNet
        unet.conv_in.register_forward_pre_hook(lambda _, args: self.inputs.append(args[0]))
        self.context = TextContext(unet)
        self.added = AddedEmbedding(unet) if net.get("addition_embed_type") else None
        self.images = None
        if file.weights("vae"):
            vae = AutoencoderKL(**config["vae_config"]).eval().requires_grad_(False)
            vae.load_state_dict(file.weights("vae"))
            self.images = ImageEncoder(vae)
        self.control = None
        if file.weights("controlnet"):
            channels = tuple(config["conditioning_embedding_out_channels"])
            controlnet = ControlNetModel(**controlnet_config(net, channels)).eval().requires_grad_(False)
            set_multiview_attention(controlnet, views)
            controlnet.load_state_dict(file.weights("controlnet"))
            self.control = ControlStep(controlnet, views)
            self.control_context, self.hints = TextContext(controlnet), HintEncoder(controlnet, views)
        self.step = ControlledDenoiserStep(unet, views) if self.control else DenoiserStep(unet, views)
        self.condition = bool(condition)


class Predictor:
    """The (guided) prediction of one case, with all that is computed once per request."""

    def __init__(self, networks: Networks, given: dict[str, Tensor], options: dict[str, Any], rays: Tensor) -> None:
        objects, views = rays.shape[:2]
        self.networks, self.objects = networks, objects
        self.scales = guidance_scales(
            options["guidance_scale"],
            views,
            options.get("triangle_cfg_scaling", False),
            options.get("min_guidance_scale", 1.0),
        ).expand(objects, -1)
        self.guided = needs_guidance(self.scales)
        self.branches = 2 if self.guided else 1
        text = self.rows(given, "prompt_embeds")
        self.rays = rays.repeat(self.branches, 1, 1, 1, 1)
        self.context = networks.context(text)
        self.extra: list[Tensor] = []
        if networks.condition:
            latents = networks.images(given["image"].flatten(0, 1))
            branches = [torch.zeros_like(latents), latents] if self.guided else [latents]
            self.extra.append(torch.cat(branches))
        if networks.added is not None:
            sizes = size_numbers(len(text), rays.shape[-1] * 8)  # an image VAE makes latents of an eighth
            self.extra.append(networks.added(self.rows(given, "pooled_prompt_embeds"), sizes))
        if networks.control is not None:
            guess = options.get("guess_mode", False)
            # in guess mode for the conditional rows alone, which are the last
            self.control_rows = slice(-objects, None) if guess else slice(None)
            self.control_context = networks.control_context(text[self.control_rows])
            hints = networks.hints(given["image"])
            self.hints = hints.repeat(len(self.control_context) // len(hints), 1, 1, 1, 1)
            scales = control_scales(networks.control.residuals, options.get("controlnet_scale", 1.0), guess)
            self.control_scales = scales.expand(len(self.control_context), -1)

    def rows(self, given: dict[str, Tensor], name: str) -> Tensor:
        """Text of all rows: unconditional first."""
        names = (f"negative_{name}", name) if self.guided else (name,)
        return torch.cat([given[name].repeat_interleave(self.objects // len(given[name]), dim=0) for name in names])

    def __call__(self, seen: Tensor, time: Tensor) -> Tensor:
        seen = seen.repeat(self.branches, 1, 1, 1, 1)
        times = time.expand(len(seen))
        extra = list(self.extra)
        if self.networks.control is not None:
            some = self.control_rows
            residuals = self.networks.control(
                seen[some], self.rays[some], times[some], self.control_context, self.hints, self.control_scales
            )
            everything = residuals.new_zeros(len(seen), residuals.shape[1])
            everything[some] = residuals
            extra.append(everything)
        prediction = self.networks.step(seen, self.rays, times, self.context, *extra)
        return guide(*prediction.chunk(2), self.scales) if self.guided else prediction


@pytest.mark.parametrize("part", PARTS)
def test_sampling(part, golden, assert_close, noise_schedule):
    file = golden(part)
    config = file.config
    views = config["num_views"]
    networks = Networks(file)
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
        if networks.condition:
            full = torch.cat([full[:1], full])  # the condition view has the rays of generated view 0
        assert_close(full.repeat(objects, 1, 1, 1)[: len(given["plucker"])], given["plucker"], f"{case} plucker")
        rays = latent_plucker(cameras, geometry, first.shape[-1]).expand(objects, -1, -1, -1, -1)
        predict = Predictor(networks, given, options, rays)

        sampler = (schedule, options["scheduler_type"], options["num_inference_steps"], options.get("eta") or 0.0)
        if options.get("init_std", 0.0) > 0 and options["init_noise_strength"] < 1:
            start = late_start(*sampler, options["init_noise_strength"])
            table = start.table
            blob = blob_views(first.shape[-1] * 8, options["init_std"], options.get("init_bg", 0.0))
            mean, std = networks.images.moments(blob)
            clean = mean + std * noises["VAE posterior sample of the init image"].flatten(0, 1)
            x = start.noised(clean.unflatten(0, (-1, views)), noises["noise added to the init latents"])
        else:
            table = build_sampler(*sampler)
            x = first * table.init_sigma
        assert_close(table.timesteps, out["timesteps"], f"{case} timesteps")
        assert_close(x.flatten(0, 1), out["initial_latents"], f"{case} initial latents")

        x0 = None
        networks.inputs.clear()
        for k, (time, coeffs) in enumerate(zip(table.timesteps, table.coeffs, strict=True)):
            coeffs = coeffs.expand(objects, -1)
            prediction = predict(model_input(x, coeffs), time)
            assert_close(prediction.flatten(0, 1), out["guided_model_output"][k], f"{case} step {k} prediction")
            # the last step of the SDE solver draws noise that has no weight
            noise = noises[f"scheduler step {k}"] if needs_noise(coeffs) else None
            x, x0 = sampler_step(x, prediction, x0, noise, coeffs)
            assert_close(x.flatten(0, 1), out["latents_per_step"][k], f"{case} step {k} latents")
        assert_close(networks.inputs[0], out["first_network_input"], f"{case} network input")
        assert len(networks.inputs) == int(out["num_network_calls"]), f"{case}: {len(networks.inputs)} network calls"
