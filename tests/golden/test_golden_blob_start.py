"""Instant3D's start: the blob, and the first state that every family makes of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler

from diffsplat.sampling.blob_start import blob_views
from tests.golden.pipe_runs import PipeStage, case_options

STD, STRENGTH, BACKGROUND = 0.1, 0.7, 0.2


def test_blob(golden, assert_close):
    file = golden("build_gaussians")
    for case in file.cases:
        given, out = file.case_in(case), file.out(case)
        views = blob_views(int(given["H"]) // 2, float(given["std"]), float(given["bg"]))
        views = 2 * views - 1  # the file holds what the image VAE is fed
        assert_close(views, out["views"], f"{case} views")
        sheet = torch.cat([torch.cat(tuple(views[k : k + 2]), dim=-1) for k in (0, 2)], dim=-2)
        assert_close(sheet[None], out["full"], f"{case} sheet")


@pytest.mark.parametrize(
    ("part", "vae_part"),
    [
        ("pipe_sd_text", "pipe_sd_image"),
        ("pipe_pixart_sigma_text", "pipe_pixart_sigma_image"),
        ("pipe_sd3_text", "pipe_sd3_image"),
    ],
)
def test_first_state_of_every_family(part, vae_part, golden, noise_schedule, assert_close):
    """Text models with the image VAE of their family: no file has such a run of PixArt or SD3.

    Held against the formula with diffusers' own autoencoder and forward process: latents s (z - m), with the shift m
    that a condition image's latents lack.
    """
    file, images = golden(part, or_default=True), golden(vae_part, or_default=True)
    file = with_vae(file, images)
    base = file.config["scheduler_config_of_base_model"]
    vae = AutoencoderKL(**images.config["vae_config"]).eval()
    vae.load_state_dict(images.weights("vae"))
    for case in file.cases:
        options = case_options(file, case)
        if options["scheduler_type"] == "edm" or options["B"] > 1:
            continue  # edm's state is scaled by 1 / alpha; the reference starts one object at a time
        stage = PipeStage(file, noise_schedule(base, options["prediction_type"] or None))
        steps = options["num_inference_steps"]
        timestep = file.out(case)["timesteps"][steps - int(steps * STRENGTH)]
        (job, _), *_ = stage.start(case)

        noise = file.case_in(case)
        views = 2 * blob_views(stage.spec.image_size, STD, BACKGROUND) - 1
        with torch.no_grad():
            posterior = vae.encode(views).latent_dist
        sample = posterior.mean + posterior.std * noise["noise_01"]
        clean = vae.config.scaling_factor * (sample - (vae.config.shift_factor or 0.0))
        if stage.spec.schedule.process == "flow":
            table = job.sampler.coeffs[0]
            sigma = float(-table[2]) if options["scheduler_type"] != "flow" else float(timestep) / 1000
            expected = (1 - sigma) * clean + sigma * noise["noise_02"]
        else:
            betas = {name: base[name] for name in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")}
            expected = DDPMScheduler(**betas).add_noise(clean, noise["noise_02"], timestep[None].long())
        assert_close(job.latents, expected, f"{case} first state", tolerance=1e-5)
        assert job.steps == int(steps * STRENGTH)
        stage.stage.step([job])
        assert torch.isfinite(job.latents).all()


def with_vae(file: Any, images: Any) -> Any:
    """A text model's file with the image VAE of another, its cases started from the blob."""
    generator = torch.Generator().manual_seed(0)
    cases = {}
    tensors = {**file.tensors, **{f"weights/vae/{name}": value for name, value in images.weights("vae").items()}}
    for case, options in file.config["cases"].items():
        cases[case] = {**options, "init_std": STD, "init_noise_strength": STRENGTH, "init_bg": BACKGROUND}
        first = tensors[f"in/{case}/noise_00"]
        count = len(file.config["noise_order"][case])
        for k in range(1, count + 2):
            tensors[f"in/{case}/noise_{k:02d}"] = torch.randn(first.shape, generator=generator)
    order = {case: [*uses, "posterior sample", "added noise"] for case, uses in file.config["noise_order"].items()}
    config = {**file.config, "cases": cases, "noise_order": order, "vae_used": True}
    config["vae_config"] = images.config["vae_config"]
    return replace(file, tensors=tensors, config=config)
