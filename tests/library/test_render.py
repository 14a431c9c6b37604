"""Rendering: geometry rules of the two kinds of bundles, and gradients down to the grid."""

import dataclasses

import pytest
import torch

from diffsplat.backbones import PICO, SD15
from diffsplat.geometry.cameras import (
    DIFFSPLAT_FOCAL,
    Cameras,
    generated_view_cameras,
    pixel_intrinsics,
    world_to_camera,
)
from diffsplat.geometry.gaussians import Gaussians, canonicalize, grid_to_gaussians
from diffsplat.splats.render import opacity_factors, render

LEGACY = dataclasses.replace(SD15.geometry, grid_size=32, scale_min=0.01, scale_max=0.05)


def random_gaussians(count: int = 60) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    means = 0.6 * torch.rand(2, count, 3, generator=generator) - 0.3
    rgbs, opacities = torch.rand(2, count, 3, generator=generator), torch.rand(2, count, generator=generator)
    scales = 0.01 + 0.04 * torch.rand(2, count, 3, generator=generator)
    quats = torch.nn.functional.normalize(torch.randn(2, count, 4, generator=generator), dim=-1)
    return Gaussians(means, rgbs, opacities, scales, quats * (0.7 + 0.6 * torch.rand(2, count, 1, generator=generator)))


CAMERAS = generated_view_cameras(torch.tensor([10.0, -30.0]), 1.4)  # [2, 4]


def test_a_splat_appears_where_the_camera_says():
    """Pixel, colour, depth and background of one opaque splat."""
    position = torch.tensor([0.2, 0.1, -0.15])
    one = Gaussians(
        position[None, None],
        torch.tensor([[[1.0, 0.5, 0.0]]]),
        torch.tensor([[0.999]]),
        torch.full((1, 1, 3), 0.05),
        torch.tensor([[[1.0, 0, 0, 0]]]),
    )
    cameras = generated_view_cameras(20.0, 1.4)
    images = render(one, cameras, 48, 64, PICO.geometry, background=0.25)
    assert images.rgb.shape == (1, 4, 3, 48, 64)
    assert images.alpha.shape == images.depth.shape == (1, 4, 1, 48, 64)
    in_camera = (world_to_camera(cameras.camera_to_world) @ torch.cat([position, torch.ones(1)]))[:, :3]
    seen = (pixel_intrinsics(cameras.intrinsics, 48, 64) @ in_camera[..., None])[..., 0]
    for view in range(4):
        column, row = (seen[view, :2] / seen[view, 2]).floor().int().tolist()
        assert images.alpha[0, view, 0].argmax().item() == row * 64 + column
        assert images.alpha[0, view, 0, row, column] > 0.96
        assert images.depth[0, view, 0, row, column].item() == pytest.approx(in_camera[view, 2].item(), rel=1e-5)
        torch.testing.assert_close(images.rgb[0, view, :, row, column], one.rgbs[0, 0], rtol=0, atol=0.03)
    torch.testing.assert_close(images.rgb[0, :, :, 0, 0], torch.full((4, 3), 0.25))


def test_canonical_gaussians_draw_the_same_object():
    """Un-normalised quaternions shape a legacy splat; their canonical form shows it in every renderer (rule 7)."""
    gaussians = random_gaussians()
    images = render(gaussians, CAMERAS, 40, 40, LEGACY)
    canonical = render(canonicalize(gaussians, LEGACY), CAMERAS, 40, 40, LEGACY)
    torch.testing.assert_close(canonical.rgb, images.rgb, rtol=0, atol=1e-4)
    normalised = gaussians._replace(quats_wxyz=torch.nn.functional.normalize(gaussians.quats_wxyz, dim=-1))
    assert (render(normalised, CAMERAS, 40, 40, LEGACY).rgb - images.rgb).abs().max() > 0.02


def test_objects_and_views_do_not_mix():
    gaussians = random_gaussians()
    images = render(gaussians, CAMERAS, 24, 24, LEGACY)
    for b in range(2):
        one = Gaussians(*(values[b : b + 1] for values in gaussians))
        seen = Cameras(CAMERAS.camera_to_world[b, 1:2], CAMERAS.intrinsics[b, 1:2])
        torch.testing.assert_close(render(one, seen, 24, 24, LEGACY).rgb[0, 0], images.rgb[b, 1])


def test_opacity_factor_of_the_published_rasterizer():
    """It leaves splats of a pixel alone and lets those without area vanish."""
    camera_to_world, intrinsics = generated_view_cameras(0.0, 1.5, views=1)
    scales = torch.tensor([0.02, 1e-3, 1e-6])[None, :, None].expand(1, 3, 3)
    quats = torch.tensor([1.0, 0, 0, 0]).expand(1, 3, 4)
    gaussians = Gaussians(torch.zeros(1, 3, 3), torch.ones(1, 3, 3), torch.ones(1, 3), scales, quats)
    k = pixel_intrinsics(intrinsics, 64, 64)
    factors = opacity_factors(gaussians, world_to_camera(camera_to_world), k, 64, 64)[0, 0]
    assert factors[0].item() == pytest.approx(1.0, abs=1e-5)
    determinant = (1e-3 * k[0, 0, 0].item() / 1.5) ** 4
    assert factors[1].item() == pytest.approx((determinant / (determinant + 1e-6) + 1e-6) ** 0.5, rel=1e-3)
    assert factors[2] == 0


@pytest.mark.parametrize("slope", [0.2, 0.45, 0.9, -3.0])
def test_opacity_factor_beside_the_image(slope):
    """The published rasterizer limits the slope in the Jacobian to 1.3 times that of the image's edge."""
    camera_to_world, intrinsics = generated_view_cameras(0.0, 1.5, views=1)
    k = pixel_intrinsics(intrinsics, 64, 64)
    size, focal = 8e-4, k[0, 0, 0].item()
    means = torch.tensor([[[slope * 1.5, 0.0, 0.0]]])  # view 0 looks along -z from (0, 0, 1.5)
    quats = torch.tensor([[[1.0, 0, 0, 0]]])
    gaussians = Gaussians(means, torch.ones(1, 1, 3), torch.ones(1, 1), torch.full((1, 1, 3), size), quats)
    factor = opacity_factors(gaussians, world_to_camera(camera_to_world), k, 64, 64).item()
    limit = 1.3 * 32 / focal
    limited = max(-limit, min(limit, slope))
    determinant = (size * focal / 1.5) ** 4 * (1 + limited**2)
    assert factor == pytest.approx((determinant / (determinant + 1e-6) + 1e-6) ** 0.5, rel=1e-4)


def test_opacity_factor_of_flat_splats_has_a_gradient():
    """Round-off makes some of their determinants negative."""
    camera_to_world, intrinsics = generated_view_cameras(0.0, 1.5, views=1)
    generator = torch.Generator().manual_seed(0)
    quats = torch.nn.functional.normalize(torch.randn(1, 4000, 4, generator=generator), dim=-1)
    scales = torch.zeros(1, 4000, 3)
    scales[..., 0] = 0.02 + 0.02 * torch.rand(1, 4000, generator=generator)
    quats.requires_grad_()
    gaussians = Gaussians(torch.zeros(1, 4000, 3), torch.ones(1, 4000, 3), torch.ones(1, 4000), scales, quats)
    k = pixel_intrinsics(intrinsics, 64, 64)
    factors = opacity_factors(gaussians, world_to_camera(camera_to_world), k, 64, 64)
    factors.sum().backward()
    assert torch.isfinite(factors).all() and torch.isfinite(quats.grad).all()


def test_what_the_geometry_says_reaches_the_rasterizer():
    camera = generated_view_cameras(0.0, 1.5, views=1)

    def alpha(z: float, scale: float, splat_scale: float = 1.0, **rules: float) -> torch.Tensor:
        """Alpha of one splat on the optical axis, which is the centre of pixel (16, 16)."""
        one = Gaussians(
            torch.tensor([[[0.0, 0.0, z]]]),
            torch.ones(1, 1, 3),
            torch.full((1, 1), 0.5),
            torch.full((1, 1, 3), scale),
            torch.tensor([[[1.0, 0, 0, 0]]]),
        )
        geometry = dataclasses.replace(LEGACY, **{"opacity_compensation": False, **rules})
        return render(one, camera, 33, 33, geometry, splat_scale=splat_scale).alpha[0, 0, 0]

    assert alpha(1.4, 0.001, near_plane=0.05)[16, 16].item() == pytest.approx(0.5, abs=1e-3)
    assert (alpha(1.4, 0.001, near_plane=0.2) == 0).all()
    assert alpha(0.0, 0.02, eps2d=1.0).sum() > 1.5 * alpha(0.0, 0.02).sum()
    torch.testing.assert_close(alpha(0.0, 0.04, splat_scale=0.5), alpha(0.0, 0.02))
    determinant = (0.0011 * DIFFSPLAT_FOCAL * 33 / 1.5) ** 4
    factor = (determinant / (determinant + 1e-6) + 1e-6) ** 0.5
    assert factor < 0.8  # a splat of a thirtieth of a pixel
    compensated = alpha(0.0, 0.0011, opacity_compensation=True)[16, 16]
    assert compensated.item() == pytest.approx(0.5 * factor, rel=1e-3)


@pytest.mark.parametrize("geometry", [dataclasses.replace(PICO.geometry, grid_size=8), LEGACY], ids=["new", "legacy"])
def test_gradients_reach_every_channel_of_the_grid_in_float32(geometry):
    generator = torch.Generator().manual_seed(0)
    grid = (torch.rand(1, 4, 12, 8, 8, generator=generator) * 2 - 1).requires_grad_()
    cameras = generated_view_cameras(10.0, 1.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = render(grid_to_gaussians(grid, cameras, geometry), cameras, 32, 32, geometry)
    assert images.rgb.dtype == images.alpha.dtype == images.depth.dtype == torch.float32
    (images.rgb.square().mean() + images.alpha.square().mean()).backward()
    assert grid.grad.isfinite().all()
    assert (grid.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()
