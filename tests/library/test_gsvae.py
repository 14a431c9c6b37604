"""GSVAE: the scaling of latents, sampling, and the batch of views."""

import dataclasses

import pytest
import torch

from diffsplat.backbones import PICO
from diffsplat.splats.gsvae import build_gsvae, widen_from_image_vae


@pytest.fixture(scope="module")
def gsvae():
    torch.manual_seed(0)
    config = {**PICO.gsvae, "block_out_channels": [8, 8, 16], "scaling_factor": 0.5, "shift_factor": 0.25}
    return build_gsvae(dataclasses.replace(PICO, gsvae=config)).requires_grad_(False)


def test_mean_and_samples(gsvae):
    grid = torch.rand(2, 4, 12, 32, 32) * 2 - 1
    mean = gsvae.encode(grid)
    assert mean.shape == (2, 4, PICO.latent_channels, PICO.latent_size, PICO.latent_size)
    posterior = gsvae.posterior(grid)
    torch.testing.assert_close(mean, 0.5 * (posterior.mean - 0.25))
    first, again = (gsvae.encode(grid, torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    spread = (first - mean) / (0.5 * torch.exp(0.5 * posterior.log_variance))  # standard normal
    assert abs(spread.mean()) < 0.1 and abs(spread.std() - 1) < 0.1


def test_views_are_decoded_as_one_batch_of_independent_images(gsvae):
    latents = torch.randn(2, 4, 4, 8, 8)
    grid = gsvae.decode(latents)
    assert grid.shape == (2, 4, 12, 32, 32)
    assert grid.abs().max() <= 1
    torch.testing.assert_close(gsvae.decode(latents[1:, 2:3]), grid[1:, 2:3], rtol=1e-4, atol=1e-5)
    expected = gsvae.vae.decode(latents[0] / 0.5 + 0.25).sample.clamp(-1, 1)
    torch.testing.assert_close(grid[0], expected, rtol=1e-4, atol=1e-5)


def test_tiny_decoder_is_never_assumed(gsvae):
    with pytest.raises(ValueError, match="no tiny decoder"):
        gsvae.decode_tiny(torch.zeros(1, 4, 4, 8, 8))
    with pytest.raises(ValueError, match="tiny_state"):
        widen_from_image_vae(gsvae, {}, {})
