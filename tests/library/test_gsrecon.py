"""GSRecon: where it starts from and what it must not depend on."""

import dataclasses

import pytest
import torch

from diffsplat.backbones import PICO
from diffsplat.geometry.cameras import Cameras, generated_view_cameras
from diffsplat.geometry.gaussians import GRID_LAYOUT
from diffsplat.splats.gsrecon import GSReconConfig, build_gsrecon


def test_starts_as_a_faint_shell_of_medium_splats():
    torch.manual_seed(0)
    grid = build_gsrecon(PICO)(torch.rand(2, 4, 9, 32, 32), generated_view_cameras(10.0, 1.4))
    assert grid.shape == (2, 4, 12, 32, 32)
    assert (grid[:, :, GRID_LAYOUT["depth"]] == 0).all()
    assert (grid[:, :, GRID_LAYOUT["scale"]] == 0).all()
    opacity = grid[:, :, GRID_LAYOUT["opacity"]]
    torch.testing.assert_close(0.5 * opacity + 0.5, torch.full_like(opacity, torch.tensor(-2.0).sigmoid().item()))
    torch.testing.assert_close(grid[:, :, GRID_LAYOUT["quat_wxyz"]].norm(dim=2), torch.ones(2, 4, 32, 32))


def test_views_have_no_order():
    """There is no position code but the rays: shuffled views give shuffled grids."""
    torch.manual_seed(0)
    gsrecon, images, cameras = build_gsrecon(PICO), torch.rand(1, 4, 9, 32, 32), generated_view_cameras(10.0, 1.4)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = gsrecon(images[:, order], Cameras(*(values[order] for values in cameras)))
    torch.testing.assert_close(shuffled, gsrecon(images, cameras)[:, order], rtol=1e-4, atol=1e-5)


def test_rgb_alone_is_an_option_and_wrong_channels_are_refused():
    spec = dataclasses.replace(PICO, gsrecon={**PICO.gsrecon, "input_normal": False, "input_coord": False})
    gsrecon, cameras = build_gsrecon(spec), generated_view_cameras(10.0, 1.4)
    assert gsrecon(torch.rand(1, 4, 3, 32, 32), cameras).shape == (1, 4, 12, 32, 32)
    with pytest.raises(ValueError, match="9 channels, this GSRecon takes 3"):
        gsrecon(torch.rand(1, 4, 9, 32, 32), cameras)


def test_spec_is_checked_and_decides_the_rays():
    assert build_gsrecon(PICO).config.ray_pixel_rule == PICO.geometry.ray_pixel_rule
    assert GSReconConfig().image_channels == 9
    with pytest.raises(ValueError, match="width"):
        build_gsrecon(dataclasses.replace(PICO, gsrecon={"width": 3}))
