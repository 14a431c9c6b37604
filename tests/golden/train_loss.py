"""Compares our training losses with a reference file: noising, dropout, network input, target, weights, rendering loss.

The reference's own names for its options are translated here; an unknown one is refused by name.
"""

import dataclasses

import torch
import torch.nn.functional as F

from diffsplat.backbones import PIXART_SIGMA, SD3, SD15
from diffsplat.denoisers.view_inputs import network_input
from training.config.common import RenderWeights
from training.config.objective import ObjectiveOptions
from training.objectives import Objective, drop_conditions, rendering_snr_weights
from training.rendering_loss import Maps, RenderingLoss

BASES = {"sd15": SD15, "sd21": SD15, "sdxl": SD15, "pixart": PIXART_SIGMA, "sd3": SD3}
RATE = 0.05
# options that say what is already visible in the tensors of a case, or have no part in the loss of a denoiser
IGNORED = {
    "num_views", "num_input_views", "rendering_loss_prob", "input_concat_plucker", "input_concat_binary_mask",
    "view_concat_condition", "num_cond_views", "chunk_size", "recon_weight", "lpips_warmup_start", "lpips_warmup_end",
    "zero_init_conv_in", "common_tricks", "num_inference_steps", "use_tiny_decoder",
}  # fmt: skip
RENDERING = {
    "lpips_weight": 1.0, "coord_weight": 0.0, "normal_weight": 0.0, "lpips_resize": 256, "snr_gamma_rendering": 0.0,
    "render_weight": 1.0, "diffusion_weight": 1.0,
}  # fmt: skip
# the reference's weighting schemes -> density of the timesteps, weights
SCHEMES = {
    "none": ("uniform", "none"), "logit_normal": ("logit_normal", "none"), "mode": ("mode", "none"),
    "sigma_sqrt": ("uniform", "sigma_sqrt"), "cosmap": ("uniform", "cosmap"),
}  # fmt: skip
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def check_file(file, is_flow, assert_close):
    """Compare every case of a file."""
    for name in file.cases:
        case = {**file.config.get("defaults", {}), **file.config["cases"][name]}
        check_case(file.case_in(name), file.out(name), case, is_flow, assert_close, name)


def objective_of(case, is_flow):
    options = dict(case["opt"])
    base = "sd3" if is_flow else case["base"]
    assert base in BASES, f"the diffusion loss does not have base = {base!r}, only {', '.join(BASES)}"
    spec = BASES[base]
    prediction = options.pop("prediction_type", None)
    assert prediction in (None, *PREDICTIONS), f"the diffusion loss does not have prediction_type = {prediction!r}"
    schedule = (
        spec.schedule
        if prediction is None or is_flow
        else dataclasses.replace(spec.schedule, prediction_type=prediction)
    )
    scheme = options.pop("weighting_scheme", options.pop("weighting_type", "logit_normal"))
    assert scheme in SCHEMES, f"the diffusion loss does not have weighting_scheme = {scheme!r}"
    density, weighting = SCHEMES[scheme] if is_flow else ("uniform", "none")
    mine = ObjectiveOptions(
        min_snr_gamma=options.pop("snr_gamma", 0.0),
        edm=options.pop("edm_style_training", False),
        on_clean=options.pop("precondition_outputs", False),
        logit_mean=options.pop("logit_mean", 0.0),
        logit_std=options.pop("logit_std", 1.0),
        mode_scale=options.pop("mode_scale", 1.29),
        density=density,
        weighting=weighting,
    )
    rate = options.pop("cfg_rate", RATE)
    rendering = {name: options.pop(name, value) for name, value in RENDERING.items()}
    unknown = set(options) - IGNORED
    assert not unknown, f"the diffusion loss does not have {sorted(unknown)}"
    return Objective.of(schedule, mine), spec, rate, rendering


def check_case(given, expected, case, is_flow, assert_close, name):
    def close(actual, output, **options):
        assert_close(actual, expected[output], f"{name}: {output}", **options)

    def same_views(tensor):
        """One row per view of the generated views, as the reference keeps it, or per object."""
        return tensor.repeat_interleave(views) if len(expected["timesteps"]) == count * views else tensor

    objective, spec, rate, rendering = objective_of(case, is_flow)
    count = case["B"]
    clean = given["latents"].unflatten(0, (count, -1))  # [B, V, C, h, w]
    noise = given["noise"].unflatten(0, (count, -1))
    views = clean.shape[1]
    if is_flow:
        times = check_flow_times(given, objective, close, views)
    else:
        times = given["randint"]
        if objective.options.edm:  # the reference draws rows of Euler's descending table
            times = len(objective.sigma) - 1 - times
    timesteps = objective.network_timesteps(times)
    close(same_views(timesteps).to(expected["timesteps"].dtype), "timesteps")

    noisy = objective.add_noise(clean, noise, times)
    close(noisy.flatten(0, 1), "noisy_latents")
    if objective.options.edm:
        ratio = objective.sigma[times] / objective.alpha[times]
        close(ratio.float().repeat_interleave(views), "sigmas")
    target = objective.target(clean, noise, times)
    close(target.flatten(0, 1), "target")

    image = given.get("image_latents")
    attended = views + (0 if image is None else image.shape[1])
    if "num_views" in expected:
        close(torch.tensor(attended), "num_views")
    dropped = drop_conditions(given["random_p"], rate, image is not None)
    check_network_inputs(given, expected, objective.network_input(noisy, times), dropped, attended, close)
    told = timesteps.to(expected["network_timesteps"].dtype)
    close(told if is_flow else told.repeat_interleave(attended), "network_timesteps")

    output = given["network_output"].unflatten(0, (count, -1))[:, attended - views :]
    close(objective.compared(noisy, output, times).flatten(0, 1), "model_pred")
    loss = objective.errors(noisy, output, target, times) * objective.loss_weights(times)
    if objective.options.min_snr_gamma:
        close(objective.loss_weights(times).repeat_interleave(views), "mse_loss_weights")
    if "render_loss" in expected:
        estimate = objective.clean_estimate(noisy, output, times)
        scale = case.get("vae_scaling", spec.gsvae["scaling_factor"])
        shift = case.get("vae_shift", spec.gsvae.get("shift_factor") or 0.0)
        close((estimate / scale + shift).flatten(0, 1), "render_latents")
        weights = rendering_snr_weights(objective, times, rendering["snr_gamma_rendering"])
        if rendering["snr_gamma_rendering"]:
            close(weights, "mse_loss_weights")
        rendered = weights * published_rendering_loss(given, rendering)
        close(rendered, "render_loss")
        loss = rendering["diffusion_weight"] * loss + rendering["render_weight"] * rendered
    # with min-SNR the reference multiplies [B] losses by [B * V] weights, which works for one object alone
    close(loss.expand_as(expected["loss"]) if count == 1 else loss, "loss")


def check_flow_times(given, objective, close, views):
    """Rows of the table from the reference's draws, a normal or a uniform one."""
    (draw,) = [tensor for name, tensor in given.items() if name.endswith("_draw") or name in ("uniform", "rand")]
    is_normal = objective.options.density == "logit_normal"
    positions = objective.density(torch.special.ndtr(draw.double()) if is_normal else draw.double())
    close(positions.float(), "u")
    times = objective.times_at(positions)
    close(times, "indices")
    close(objective.sigma[times].float().repeat_interleave(views), "sigmas")
    plain = dataclasses.replace(objective, options=dataclasses.replace(objective.options, min_snr_gamma=0.0))
    close(plain.loss_weights(times).repeat_interleave(views), "weighting")
    return times


def check_network_inputs(given, expected, latents, dropped, attended, close):
    """What the network sees: latents, rays and mask of all views, and text that was not dropped."""
    count, views, channels, size, _ = latents.shape
    rays = F.interpolate(given["plucker"], size=(size, size), mode="bilinear", align_corners=False)
    rays = rays.unflatten(0, (count, attended))
    image = given.get("image_latents")
    if image is None:
        inputs = network_input(latents, rays)
    else:
        assert image.shape[1] == 1, "one condition view"
        condition = image[:, 0] * ~dropped.image[:, None, None, None]
        generated = network_input(latents, rays[:, 1:], condition)[:, 1:]
        # ours shares the rays of view 0, the reference's random ones differ
        inputs = torch.cat([network_input(latents, rays[:, :-1], condition)[:, :1], generated], dim=1)
    close(inputs.flatten(0, 1), "network_input")
    for kept, null, output in (
        ("prompt_embeds", "negative_prompt_embeds", "network_text"),
        ("pooled_prompt_embeds", "negative_pooled_prompt_embeds", "network_pooled"),
        ("prompt_attention_mask", "negative_prompt_attention_mask", "network_mask"),
    ):
        if output in expected:
            rows = dropped.text.view(-1, *[1] * (given[kept].ndim - 1))
            text = torch.where(rows, given[null], given[kept])
            close(text.repeat_interleave(len(expected[output]) // count, dim=0), output)


class StandIn:
    """What the files have in place of LPIPS: the squared difference of resized images in -1 .. 1."""

    def distance(self, first, second, size):
        if size:
            first, second = (
                F.interpolate(images, (size, size), mode="bilinear", align_corners=False) for images in (first, second)
            )
        return (2.0 * (first - second)).square().flatten(1).mean(1)


def published_rendering_loss(given, options):
    """Per object."""
    weights = RenderWeights(
        coord=options["coord_weight"], normal=options["normal_weight"], perceptual="none",
        lpips=options["lpips_weight"], perceptual_size=int(options["lpips_resize"]),
    )  # fmt: skip
    loss = RenderingLoss(weights, SD15.geometry, compat=True)
    if options["lpips_weight"]:
        loss.perceptual_name, loss.perceptual = "lpips", StandIn()
    shown = Maps(*(given[f"render_{name}"] for name in ("image", "alpha", "coord", "normal")))
    truth = Maps(*(given[f"gt_{name}"] for name in ("image", "mask", "coord", "normal")))
    return loss.compare(shown, truth, step=0).total
