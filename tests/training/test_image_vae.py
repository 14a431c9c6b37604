"""Small backbones have an image autoencoder of their own, and image models that look through it."""

from pathlib import Path

import pytest
import torch
from diffsplat_client.request import GenerationRequest

from diffsplat.images.vae_encoder import build_image_encoder
from diffsplat.pipeline import Pipeline
from tests.image_files import image
from tests.training.resuming import check_resume
from training.assemble import bundle_runs
from training.config.common import Cadence, Data, Optim, RunOptions
from training.config.diffusion import DiffusionConfig
from training.config.image_vae import ImageVaeConfig
from training.parents import open_parent
from training.recipe import run_stage
from training.stages.image_vae import normalised

PICO = Path("bundles/pico")
DATA = Data(objects=4, validation_objects=1, batch_size=2, views=4, pool_size=0, first_views=(0,))
STEPS = 12


def test_normalised_latents_have_mean_zero_and_unit_size() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(6, 8, 1)
    inputs = torch.randn(4, 6, 8, 8) + 1.0
    mean, log_variance = layer(inputs).chunk(2, dim=1)
    center, factor = mean.mean().item(), 1.0 / mean.std().item()
    layer.load_state_dict(normalised(layer, center, factor))
    after, log_variance_after = layer(inputs).chunk(2, dim=1)
    assert after.mean().abs() < 1e-5 and after.std().item() == pytest.approx(1.0, abs=1e-4)
    deviations = [torch.exp(0.5 * values) for values in (log_variance, log_variance_after)]
    torch.testing.assert_close(deviations[1], factor * deviations[0])


def test_a_small_image_model_is_trained_without_any_base_model_and_served(tmp_path: Path) -> None:
    """Image autoencoder, also resumed; then an image model from the text model of the shipped bundle; then a bundle."""
    common = {"data": DATA, "cadence": Cadence(log_every=1, evaluate_every=STEPS, save_every=4)}
    autoencoder = ImageVaeConfig(
        backbone="pico", vae=PICO, optim=Optim(steps=STEPS, lr=3e-3, warmup_steps=0),
        run=RunOptions(out=tmp_path / "image-vae", threads=1), **common,
    )  # fmt: skip
    run_stage(autoencoder)
    check_resume(autoencoder, tmp_path / "stopped", 6)
    parent = open_parent(tmp_path / "image-vae", "image_encoder")
    assert parent.facts["metrics"]["psnr"] > 8.0
    run_stage(
        DiffusionConfig(
            backbone="pico_image", recon=PICO, vae=PICO, start=PICO, base=tmp_path / "image-vae",
            optim=Optim(steps=1, warmup_steps=0), run=RunOptions(out=tmp_path / "diffusion", threads=1),
            evaluation_steps=1, **common,
        )
    )  # fmt: skip
    sources = {"start": PICO, "image_vae": tmp_path / "image-vae", "diffusion": tmp_path / "diffusion"}
    bundle = bundle_runs(sources, tmp_path / "bundle")
    assert bundle.spec.name == "pico_image" and bundle.spec.is_image_conditioned
    encoder = parent.load("image_encoder", build_image_encoder(bundle.spec))
    assert isinstance(encoder, torch.nn.Module)
    result = Pipeline.from_bundle(bundle).generate(
        GenerationRequest("a red cube", image=image(0), elevation_deg=20.0, steps=1, seed=1)
    )
    assert result.splats.shape == (4 * 32 * 32, 14)
