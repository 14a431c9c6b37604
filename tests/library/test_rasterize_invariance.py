"""What must not change a rendering: order, threads, tiles, rigid motions, invisible splats."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffsplat.rasterize import cpu, rasterization, render_uint8
from tests.library.rasterize_scenes import Case, random_case


def render(case: Case, **options: object) -> tuple[Tensor, Tensor]:
    images, alphas, _ = rasterization(
        *case.splats, case.viewmats, case.intrinsics, case.width, case.height, eps2d=case.eps2d,
        **{"render_mode": "RGB+D", **options},
    )  # fmt: skip
    return images, alphas


def test_the_order_of_splats_does_not_matter() -> None:
    case = random_case(700, 50, scale=0.05)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    shuffled = Case(*(s[order] for s in case.splats), case.viewmats, case.intrinsics)
    assert torch.equal(render(case)[0], render(shuffled)[0])


def test_quaternions_may_be_negated_and_scaled() -> None:
    case = random_case(700, 51, scale=0.05)
    assert torch.equal(render(case)[0], render(replace(case, quats=-case.quats))[0])
    torch.testing.assert_close(render(case)[0], render(replace(case, quats=3.7 * case.quats))[0], rtol=0, atol=5e-5)


def test_negative_scales_are_their_absolute_values() -> None:
    case = random_case(300, 52)
    assert torch.equal(render(case)[0], render(replace(case, scales=-case.scales))[0])


def test_moving_scene_and_cameras_together_changes_nothing() -> None:
    case = random_case(700, 53, scale=0.05)
    angle = 0.7
    turn = torch.tensor([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])  # about z, wxyz
    motion = torch.eye(4)
    motion[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    motion[:3, 3] = torch.tensor([0.3, -0.2, 0.5])
    w, x, y, z = case.quats.unbind(-1)
    quats = torch.stack(
        [turn[0] * w - turn[3] * z, turn[0] * x - turn[3] * y, turn[0] * y + turn[3] * x, turn[0] * z + turn[3] * w], -1
    )
    moved = replace(
        case,
        means=case.means @ motion[:3, :3].T + motion[:3, 3],
        quats=quats,
        viewmats=case.viewmats @ torch.linalg.inv(motion),
    )
    torch.testing.assert_close(render(case)[0], render(moved)[0], rtol=0, atol=1e-4)


def test_white_background_is_black_plus_what_the_splats_leave() -> None:
    case = random_case(700, 54, scale=0.05)
    black, alphas = render(case, render_mode="RGB")
    white, white_alphas = render(case, render_mode="RGB", backgrounds=torch.ones(3, 3))
    assert torch.equal(alphas, white_alphas)
    torch.testing.assert_close(white, black + (1 - alphas), rtol=0, atol=1e-6)


def test_depth_knows_no_background() -> None:
    case = random_case(20, 55)
    images, alphas = render(case, render_mode="RGB+ED", backgrounds=torch.ones(3, 3))
    empty = alphas[..., 0] == 0
    assert empty.any() and (images[..., 3][empty] == 0).all() and (images[..., :3][empty] == 1).all()


def test_invisible_splats_change_not_a_bit() -> None:
    case, ghosts = random_case(700, 56), random_case(300, 57)
    faint = ghosts.opacities / 256
    mixed = [torch.cat([g[:150], s, g[150:]]) for s, g in zip(case.splats, ghosts.splats, strict=True)]
    mixed[3] = torch.cat([faint[:150], case.opacities, faint[150:]])
    assert torch.equal(render(case)[0], render(Case(*mixed, case.viewmats, case.intrinsics))[0])


@pytest.mark.parametrize("tile", [8, 32])
def test_tile_size_does_not_matter(tile: int) -> None:
    case = random_case(700, 58, scale=0.05)
    prepared = cpu.prepare(*(s.numpy() for s in case.splats[:3]), None, case.opacities.numpy(), case.colors.numpy())
    images = []
    for size in (16, tile):
        view = cpu.View(case.width, case.height, 0.01, 1e10, 0.3, tile=size)
        rows = cpu.cameras(case.viewmats.numpy(), case.intrinsics.numpy(), view)
        images.append(cpu.blend(cpu.see(prepared, rows[0], view, cpu.Scratch()), view))
    assert np.abs(images[0] - images[1]).max() < 2e-6


def test_a_shifted_centre_is_a_crop() -> None:
    case = random_case(
        700, 59, scale=0.01, spread=0.12
    )  # all well inside: the clamp of the Jacobian moves with the crop
    shifted = case.intrinsics.clone()
    shifted[:, 0, 2] -= 7
    shifted[:, 1, 2] -= 5
    crop = replace(case, intrinsics=shifted, width=30, height=26)
    whole, part = render(case)[0], render(crop)[0]
    assert part.abs().max() > 0.1
    torch.testing.assert_close(whole[:, 5:31, 7:37], part, rtol=0, atol=2e-5)


def test_threads_and_simultaneous_calls_give_the_same_bits() -> None:
    case = random_case(700, 60, scale=0.05)
    expected, expected_alphas = render(case, threads=1)
    for threads in (2, 3):
        images, alphas = render(case, threads=threads)
        assert torch.equal(images, expected) and torch.equal(alphas, expected_alphas)
    with ThreadPoolExecutor(4) as pool:
        for images, alphas in pool.map(lambda _: render(case, threads=2), range(4)):
            assert torch.equal(images, expected) and torch.equal(alphas, expected_alphas)
    arguments = *case.splats, case.viewmats, case.intrinsics, case.width, case.height
    assert torch.equal(render_uint8(*arguments, threads=1), render_uint8(*arguments, threads=2))
