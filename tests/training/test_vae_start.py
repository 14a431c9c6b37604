"""A new autoencoder that starts as an average: what shows passes through it before the first step."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffsplat.backbones import NANO, PICO, BackboneSpec
from diffsplat.geometry.gaussians import GRID_LAYOUT
from diffsplat.splats.gsvae import build_gsvae
from training.stages.vae_start import start_as_average


def smooth_grid(spec: BackboneSpec) -> Tensor:
    """[2, 4, 12, S, S] in [-1, 1], as coarse as the latents."""
    generator = torch.Generator().manual_seed(0)
    coarse = 2.0 * torch.rand(8, 12, spec.latent_size, spec.latent_size, generator=generator) - 1.0
    size = spec.geometry.grid_size
    return F.interpolate(coarse, size=(size, size), mode="bilinear").unflatten(0, (2, 4))


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


@pytest.mark.parametrize(
    ("spec", "passing"), [(NANO, ("rgb", "opacity", "depth", "scale")), (PICO, ("rgb", "opacity"))]
)
@torch.no_grad()
def test_averages_pass_through(spec: BackboneSpec, passing: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    gsvae = build_gsvae(spec).eval()
    grid = smooth_grid(spec)
    before = gsvae.vae.decode(gsvae.posterior(grid).mean.flatten(0, 1)).sample.unflatten(0, grid.shape[:2])
    start_as_average(gsvae)
    latents = gsvae.posterior(grid).mean
    after = gsvae.vae.decode(latents.flatten(0, 1)).sample.unflatten(0, grid.shape[:2])
    pooled = F.adaptive_avg_pool2d(grid.flatten(0, 1), spec.latent_size).unflatten(0, grid.shape[:2])
    channels = [index for name in passing for index in range(12)[GRID_LAYOUT[name]]]
    assert len(channels) == min(8, spec.latent_channels)
    for place, channel in enumerate(channels):
        # A group norm on the way takes each view's own mean and spread, which leaves the image of a view as it is.
        for view in range(4):
            assert correlation(latents[0, view, place], pooled[0, view, channel]) > 0.9
            assert correlation(after[0, view, channel], grid[0, view, channel]) > 0.8
        assert abs(correlation(before[:, :, channel], grid[:, :, channel])) < 0.5


def test_an_autoencoder_too_narrow_for_its_averages_is_refused() -> None:
    narrow = dataclasses.replace(NANO, gsvae={**NANO.gsvae, "block_out_channels": [8, 16, 16, 16]})
    with pytest.raises(AssertionError, match="too narrow"):
        start_as_average(build_gsvae(narrow))
