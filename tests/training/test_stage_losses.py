"""What the stages minimise: every term with its weight, and the terms themselves on known grids."""

from pathlib import Path

import pytest
import torch

from diffsplat.backbones import PICO
from diffsplat.geometry.gaussians import grid_to_gaussians
from diffsplat.splats.gsrecon import build_gsrecon
from training.checkpoint import save_finished
from training.config.common import Data, RenderWeights, RunOptions
from training.config.recon import ReconConfig
from training.config.vae import VaeConfig
from training.loop import step_generator
from training.presets import nano, pico
from training.stages.common import batch_cameras
from training.stages.recon import ReconStage, faintness
from training.stages.vae import VaeStage, visible_error

DATA = Data(objects=2, validation_objects=1, batch_size=2, views=5, pool_size=1)
WEIGHTS = RenderWeights(image=0.7, mask=0.3, ssim=0.9, coord=0.4, normal=0.6)
CHANNEL_WEIGHTS = [3.0] * 3 + [0.25] * 3 + [0.05] * 4 + [1.0, 10.0]  # rgb, scale, quaternion, opacity, depth
TRANSPARENT = 0.05  # weight of a transparent pixel, an opaque one has 1
COMMON = {"data": DATA, "weights": WEIGHTS, "run": RunOptions(threads=1)}


def rendering_total(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    images = WEIGHTS.image * parts["image_mse"] + WEIGHTS.mask * parts["mask_mse"] + WEIGHTS.ssim * parts["dssim"]
    return images + WEIGHTS.coord * parts["coord_mse"] + WEIGHTS.normal * parts["normal_error"]


def test_gsrecon_minimises_the_weighted_sum_of_its_terms() -> None:
    config = ReconConfig(position_weight=2.0, colour_weight=3.0, opacity_weight=5.0, alive_weight=7.0, **COMMON)
    stage = ReconStage(config)
    torch.manual_seed(0)
    stage.build()
    total, parts = stage.loss(next(stage.stream(0, 1)), step_generator(0, 0, 0))
    tidy = 2.0 * parts["position_mse"] + 3.0 * parts["colour_mse"] + 5.0 * parts["background_mse"]
    tidy += 7.0 * parts["faintness"]
    assert all(value > 0 for value in parts.values())
    torch.testing.assert_close(total.detach(), rendering_total(parts) + tidy)


def test_gsrecons_terms_on_the_grid_compare_with_the_true_surface() -> None:
    stage = ReconStage(ReconConfig(**COMMON))
    batch = next(stage.stream(0, 1))
    views, size = PICO.geometry.views, PICO.geometry.grid_size
    grid = torch.rand(2, views, 12, size, size, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    stage.gsrecon = lambda *_: grid  # type: ignore[assignment]
    _, parts = stage.loss(batch, step_generator(0, 0, 0))

    means = grid_to_gaussians(grid, batch_cameras(batch, views), PICO.geometry).means.reshape(2, views, size, size, 3)
    solid = batch.alphas[:, :views, 0] == 1
    surface = 2 * batch.coords[:, :views].permute(0, 1, 3, 4, 2)[solid] - 1
    colours = 2 * batch.images_rgb[:, :views].permute(0, 1, 3, 4, 2)[solid] - 1
    torch.testing.assert_close(parts["position_mse"], (means[solid] - surface).square().mean())
    channels_last = grid.permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(parts["colour_mse"], (channels_last[solid][:, :3] - colours).square().mean())
    # rgb, scale, quaternion, opacity, depth of a pixel that shows nothing
    empty = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0])
    background = channels_last[batch.alphas[:, :views, 0] == 0]
    torch.testing.assert_close(parts["background_mse"], (background - empty).square().mean())
    opacity = 0.5 * channels_last[solid][:, 10] + 0.5
    torch.testing.assert_close(parts["faintness"], -opacity.log().mean())


def test_a_gaussian_that_rendering_leaves_out_is_pulled_back() -> None:
    """Below 1/255 the rasterizer's gradient is zero; the term's is the larger, the fainter the Gaussian."""
    grid = torch.zeros(1, 1, 12, 1, 3)
    grid[0, 0, 10, 0] = torch.tensor([2 * 0.002 - 1, 0.0, 2 * 0.002 - 1])
    grid.requires_grad_(True)
    solid = torch.tensor([True, True, False]).reshape(1, 1, 1, 1, 3)
    faintness(grid, solid).backward()
    assert grid.grad is not None
    torch.testing.assert_close(grid.grad[0, 0, 10, 0], torch.tensor([-125.0, -0.5, 0.0]), rtol=1e-5, atol=0.0)
    assert not grid.grad[:, :, :10].any() and not grid.grad[:, :, 11].any()
    assert faintness(grid, torch.zeros_like(solid)) == 0


def test_gsvae_minimises_the_weighted_sum_of_its_terms(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_finished(tmp_path, {"gsrecon": build_gsrecon(PICO)}, {}, {})
    stage = VaeStage(VaeConfig(recon=tmp_path, grid_weight=2.0, render_weight=3.0, kl_weight=5.0, **COMMON))
    stage.build()
    total, parts = stage.loss(next(stage.stream(0, 1)), step_generator(0, 0, 0))
    assert parts["kl"] > 0 and parts["grid_error"] > 0
    expected = 2.0 * parts["grid_error"] + 3.0 * rendering_total(parts) + 5.0 * parts["kl"]
    torch.testing.assert_close(total.detach(), expected)


@pytest.mark.parametrize("opacity", [-1.0, 1.0])
def test_a_grids_error_counts_by_channel_and_opacity(opacity: float) -> None:
    """One channel is wrong by 0.5 at a time; half of the pixels have the opacity, the others are half opaque."""
    grid = torch.zeros(1, 1, 12, 2, 2)
    grid[:, :, 10, 0] = opacity
    by_channel = []
    for channel in range(12):
        wrong = grid.clone()
        wrong[:, :, channel, 0] += 0.5  # of the first row alone
        by_channel.append(visible_error(wrong, grid).item())
    weights = torch.tensor(CHANNEL_WEIGHTS)
    shown = TRANSPARENT + (1 - TRANSPARENT) * (0.5 * opacity + 0.5), TRANSPARENT + (1 - TRANSPARENT) * 0.5
    expected = 0.25 * weights / weights.mean() / 12 * shown[0] / sum(shown)
    torch.testing.assert_close(torch.tensor(by_channel), expected)


def test_weights_of_defaults_and_presets() -> None:
    """Every weight of a loss by number: a change of one is a change of the recipe."""
    recon, vae = ReconConfig(), VaeConfig()
    assert (recon.position_weight, recon.colour_weight, recon.opacity_weight) == (1.0, 0.0, 0.1)
    assert recon.alive_weight == pico.RECON.alive_weight == 0.0 and nano.RECON.alive_weight == 0.02
    assert (vae.grid_weight, vae.render_weight, vae.kl_weight) == (1.0, 1.0, 1e-5)
    assert recon.weights == vae.weights == RenderWeights(
        image=1.0, mask=1.0, coord=0.0, normal=0.0, perceptual="ssim", ssim=0.2, lpips=1.0, effnet=1.0,
        perceptual_size=256, perceptual_start=0, perceptual_full=0,
    )  # fmt: skip
    shown = RenderWeights(image=2.0, ssim=0.1)
    nano_recon, nano_vae, pico_vae = nano.RECON, nano.VAE, pico.VAE
    assert (nano_recon.position_weight, nano_recon.colour_weight, nano_recon.opacity_weight) == (10.0, 1.0, 0.1)
    assert nano_recon.weights == RenderWeights(image=4.0, mask=2.0) and pico.RECON.weights == RenderWeights()
    assert (nano_vae.grid_weight, nano_vae.render_weight, nano_vae.kl_weight) == (1.0, 1.0, 1e-5)
    assert (pico_vae.grid_weight, pico_vae.render_weight, pico_vae.kl_weight) == (1.0, 0.1, 1e-5)
    assert nano_vae.weights == RenderWeights(image=4.0, mask=2.0, ssim=0.1) and pico_vae.weights == shown
    for recipe in (nano, pico):
        for stage in (recipe.DECODER, recipe.TINY_DECODER):
            assert stage.weights == shown
            assert (stage.grid_weight, stage.render_weight) == (1.0, 1.0)
    assert (nano_vae.rendered_objects, pico_vae.rendered_objects) == (2, 1)
