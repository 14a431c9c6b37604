"""Grids to Gaussians, and the form in which they leave the server."""

import dataclasses

import pytest
import torch
from diffsplat_client.contract import GAUSSIAN_COLUMNS

from diffsplat.backbones import PICO, SD15
from diffsplat.geometry.cameras import generated_view_cameras
from diffsplat.geometry.gaussians import (
    GRID_LAYOUT,
    Gaussians,
    canonicalize,
    covariances,
    from_array,
    grid_to_gaussians,
    rotation_matrices,
    to_array,
)


def random_gaussians(count: int = 200, seed: int = 0) -> Gaussians:
    """Quaternions of lengths far from 1; some splats with equal scales, some flat, some not turned at all."""
    generator = torch.Generator().manual_seed(seed)
    scales = 0.0005 + 0.02 * torch.rand(1, count, 3, generator=generator)
    scales[:, :20] = scales[:, :20, :1]
    scales[:, 20:30, 2] = 1e-5
    quats = torch.randn(1, count, 4, generator=generator)
    quats[:, 30:40] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    means, rgbs = torch.randn(1, count, 3, generator=generator), torch.rand(1, count, 3, generator=generator)
    return Gaussians(means, rgbs, torch.rand(1, count, generator=generator), scales, quats)


def test_canonical_form_keeps_the_covariance():
    before = random_gaussians()
    after = canonicalize(before, SD15.geometry)
    torch.testing.assert_close(after.quats_wxyz.norm(dim=-1), torch.ones(1, 200))
    target, got = covariances(before).double(), covariances(after).double()
    error = (got - target).flatten(2).norm(dim=-1) / target.flatten(2).norm(dim=-1)
    assert error.max() < 2e-6
    assert (after.scales >= 0).all()
    torch.testing.assert_close(after.means, before.means)


def test_unit_quaternion_bundles_are_only_normalised():
    before = random_gaussians()
    after = canonicalize(before, PICO.geometry)
    torch.testing.assert_close(after.scales, before.scales, rtol=0, atol=0)
    cosine = (after.quats_wxyz * before.quats_wxyz).sum(dim=-1) / before.quats_wxyz.norm(dim=-1)
    torch.testing.assert_close(cosine, torch.ones(1, 200))


def test_quaternion_formula():
    """w first; a unit quaternion gives a rotation: 90 degrees about z takes x to y."""
    half = 0.5**0.5
    matrix = rotation_matrices(torch.tensor([half, 0.0, 0.0, half]))
    torch.testing.assert_close(matrix, torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))


def test_grid_activation():
    """Inverted scale map, strict threshold, depth counted from the object's distance, view slowest."""
    geometry = dataclasses.replace(PICO.geometry, grid_size=2, views=2)
    cameras = generated_view_cameras(0.0, 1.5, views=2)
    grid = torch.zeros(1, 2, 12, 2, 2)
    grid[:, :, GRID_LAYOUT["quat_wxyz"]] = torch.tensor([2.0, 0.0, 0.0, 0.0])[:, None, None]
    grid[:, :, GRID_LAYOUT["scale"]] = torch.tensor([-1.0, 0.0, 1.0])[:, None, None]
    grid[:, 1, GRID_LAYOUT["opacity"]] = 0.5
    gaussians = grid_to_gaussians(grid, cameras, geometry, opacity_threshold=0.5)
    middle = (geometry.scale_min + geometry.scale_max) / 2
    torch.testing.assert_close(gaussians.scales[0, 0], torch.tensor([geometry.scale_max, middle, geometry.scale_min]))
    torch.testing.assert_close(gaussians.opacities[0], torch.tensor([0.0] * 4 + [0.75] * 4))  # 0.5 is not above 0.5
    torch.testing.assert_close(gaussians.quats_wxyz[0, 0], torch.tensor([1.0, 0, 0, 0]))
    # no depth offset: all splats of a view lie in the plane through the origin that faces its camera
    torch.testing.assert_close(gaussians.means[0, :, 2], torch.zeros(8))
    assert gaussians.means[0, 0, 0] < 0 < gaussians.means[0, 4, 0]  # seen from behind, left is right
    assert gaussians.means[0, 0, 1] > 0 > gaussians.means[0, 2, 1]  # the first row is the upper one


def test_arrays_follow_the_contract():
    gaussians = random_gaussians()
    array = to_array(gaussians)
    torch.testing.assert_close(array[:, GAUSSIAN_COLUMNS["scale"]], gaussians.scales[0])
    torch.testing.assert_close(array[:, GAUSSIAN_COLUMNS["quat_wxyz"]], gaussians.quats_wxyz[0])
    torch.testing.assert_close(array[:, GAUSSIAN_COLUMNS["opacity"]][:, 0], gaussians.opacities[0])
    for ours, back in zip(gaussians, from_array(array), strict=True):
        torch.testing.assert_close(back, ours, rtol=0, atol=0)
    with pytest.raises(ValueError, match="exactly 1"):
        to_array(Gaussians(*(torch.cat([values, values]) for values in gaussians)))
    with pytest.raises(ValueError, match=r"\[N, 14\]"):
        from_array(array[:, :13])
