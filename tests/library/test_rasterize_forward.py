"""The CPU rasterizer's images against the dense float64 oracle, and against what can be computed by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from diffsplat.rasterize import cpu, rasterization, render_uint8
from diffsplat.rasterize.torch_reference import covariances, project, rasterize_reference
from tests.library.rasterize_scenes import CASES, Case, look_at, random_case

BACKGROUND = torch.tensor([[0.2, 0.5, 0.9], [1.0, 1.0, 1.0], [0.0, 0.3, 0.0]])


def render(case: Case, **options: object) -> tuple[Tensor, Tensor]:
    images, alphas, _ = rasterization(
        *case.splats, case.viewmats, case.intrinsics, case.width, case.height, eps2d=case.eps2d, **options
    )
    return images, alphas


def oracle(case: Case, **options: object) -> tuple[Tensor, Tensor]:
    return rasterize_reference(
        *(s.double() for s in case.splats),
        case.viewmats.double(),
        case.intrinsics.double(),
        case.width,
        case.height,
        eps2d=case.eps2d,
        **options,
    )


def central_camera(size: int = 33, focal: float = 40.0) -> tuple[Tensor, Tensor]:
    k = torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]])
    return torch.eye(4)[None], k


@pytest.mark.parametrize("name", CASES)
def test_images_match_the_dense_oracle(name: str) -> None:
    case = CASES[name]()
    grounds = BACKGROUND[: len(case.viewmats)]
    images, alphas = render(case, backgrounds=grounds, render_mode="RGB+ED")
    expected, expected_alphas = oracle(case, backgrounds=grounds.double(), render_mode="RGB+ED")
    assert images.shape == (len(case.viewmats), case.height, case.width, 4)
    assert (images[..., :3] - expected[..., :3]).abs().max() < 1e-4
    assert (alphas - expected_alphas).abs().max() < 1e-4
    covered = expected_alphas[..., 0] > 1e-3
    assert ((images[..., 3] - expected[..., 3]).abs() * covered).max() < 1e-4
    # The scene is what its name says: something is drawn unless it must not be.
    assert bool(covered.any()) == (name not in ("none", "everything_culled"))


@pytest.mark.parametrize("mode", ["RGB", "RGB+D"])
def test_other_render_modes_match_the_oracle(mode: str) -> None:
    case = random_case(300, 20)
    images, _ = render(case, render_mode=mode)
    expected, _ = oracle(case, render_mode=mode)
    assert images.shape == expected.shape
    assert (images - expected).abs().max() < 1e-4


def test_tiled_oracle_equals_the_dense_one() -> None:
    case = random_case(800, 21, scale=0.06)
    dense, tiled = oracle(case, render_mode="RGB+D"), oracle(case, render_mode="RGB+D", tiled=True)
    for a, b in zip(dense, tiled, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_covariances_replace_quaternions_and_scales() -> None:
    case = random_case(300, 22)
    covars = covariances(case.quats, case.scales)
    images, alphas, _ = rasterization(
        case.means, None, None, case.opacities, case.colors, case.viewmats, case.intrinsics,
        case.width, case.height, covars=covars,
    )  # fmt: skip
    expected, expected_alphas = render(case)
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(alphas, expected_alphas, rtol=0, atol=2e-5)


def test_one_splat_is_the_gaussian_of_the_formula() -> None:
    viewmats, k = central_camera()
    z, sigma, opacity = 2.0, 0.11, 0.7
    images, alphas, _ = rasterization(
        torch.tensor([[0.0, 0.0, z]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), sigma),
        torch.tensor([opacity]), torch.tensor([[0.2, 0.4, 0.8]]), viewmats, k, 33, 33, render_mode="RGB+ED",
    )  # fmt: skip
    offset = torch.arange(33) - 16.0  # pixel 16's centre is the image centre 16.5
    square = offset[:, None] ** 2 + offset[None, :] ** 2
    expected = opacity * torch.exp(-square / (2 * (sigma**2 * 40.0**2 / z**2 + 0.3)))
    expected = torch.where(expected >= 1 / 255, expected, 0)
    torch.testing.assert_close(alphas[0, ..., 0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        images[0, ..., :3], expected[..., None] * torch.tensor([0.2, 0.4, 0.8]), rtol=1e-5, atol=1e-6
    )
    seen = expected > 0
    torch.testing.assert_close(images[0, ..., 3][seen], torch.full_like(expected[seen], z), rtol=1e-5, atol=0)


def stack(opacities: list[float], colors: list[list[float]], depths: list[float]) -> tuple[Tensor, Tensor]:
    """Wide splats behind one another, seen at the centre pixel: colour and alpha."""
    n = len(opacities)
    viewmats, k = central_camera()
    means = torch.tensor([[0.0, 0.0, z] for z in depths])
    images, alphas, _ = rasterization(
        means, torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4), torch.full((n, 3), 5.0),
        torch.tensor(opacities), torch.tensor(colors), viewmats, k, 33, 33,
    )  # fmt: skip
    return images[0, 16, 16], alphas[0, 16, 16, 0]


def test_two_splats_composite_by_hand() -> None:
    color, alpha = stack([0.5, 0.6], [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [3.0, 2.0])
    torch.testing.assert_close(color, torch.tensor([0.6, 0.4 * 0.5, 0.0]), rtol=0, atol=2e-6)
    torch.testing.assert_close(alpha, torch.tensor(1 - 0.4 * 0.5), rtol=0, atol=2e-6)


def test_the_splat_that_would_use_up_the_light_is_left_out() -> None:
    # Transmittance 1e-1, 1e-2, 1e-3, then below 1e-4: the stop excludes that splat and all behind it.
    opacity = 0.9001
    color, alpha = stack([opacity] * 10, [[1.0, 0, 0]] * 3 + [[0.0, 1.0, 0]] * 7, [2.0 + 0.1 * i for i in range(10)])
    assert color[1] == 0
    torch.testing.assert_close(alpha, torch.tensor(1 - (1 - opacity) ** 3), rtol=0, atol=2e-6)


def test_equal_depth_keeps_the_lower_index_in_front() -> None:
    color, _ = stack([0.9, 0.9], [[1.0, 0, 0], [0, 1.0, 0]], [2.0, 2.0])
    torch.testing.assert_close(color, torch.tensor([0.9, 0.09, 0.0]), rtol=0, atol=2e-6)


def test_depth_order_is_a_stable_sort() -> None:
    g = torch.Generator().manual_seed(0)
    for span in (0.0, 1e-3, 5.0, 1e9):  # equal, one pass, two passes, three passes of the radix sort
        z = 0.5 + span * torch.rand(5000, generator=g).numpy().astype(np.float32)
        z[::7] = z[0]
        records = np.zeros((5000, 12), np.float32)
        records[:, 9] = z
        keys, orders = np.empty((2, 5000), np.uint32), np.empty((2, 5000), np.int32)
        which = cpu.kernels_project.depth_order(records, 5000, keys[0], orders[0], keys[1], orders[1])
        assert np.array_equal(orders[which], np.argsort(z, kind="stable"))


def test_marker_at_positive_x_appears_right_and_positive_y_below() -> None:
    viewmats, k = central_camera()
    for axis, expected in ((0, (16, 26)), (1, (26, 16))):  # (row, column), 10 pixels = 0.5 * 40 / 2
        mean = torch.zeros(1, 3)
        mean[0, 2], mean[0, axis] = 2.0, 0.5
        _, alphas, _ = rasterization(
            mean,
            torch.tensor([[1.0, 0, 0, 0]]),
            torch.full((1, 3), 0.02),
            torch.ones(1),
            torch.ones(1, 3),
            viewmats,
            k,
            33,
            33,
        )
        assert divmod(int(alphas[0, ..., 0].argmax()), 33) == expected


def test_camera_to_world_inverse_shows_the_up_axis_up() -> None:
    camera_to_world = torch.linalg.inv(look_at((1.4, 0.0, 0.0)))
    viewmat = torch.linalg.inv(camera_to_world)[None]
    _, k = central_camera()
    _, alphas, _ = rasterization(
        torch.tensor([[0.0, 0.0, 0.2]]), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.02),
        torch.ones(1), torch.ones(1, 3), viewmat, k, 33, 33,
    )  # fmt: skip
    row, column = divmod(int(alphas[0, ..., 0].argmax()), 33)
    assert column == 16 and row == round(16.5 - 40 * 0.2 / 1.4 - 0.5)


def test_projection_matches_gsplat() -> None:
    gsplat = pytest.importorskip(
        "gsplat.cuda._torch_impl", reason="gsplat is an extra; its torch projection is the yardstick"
    )
    case = random_case(20000, 30, scale=0.01, spread=0.25)
    covars = covariances(case.quats, case.scales)
    for eps2d, tolerance in ((0.3, 5e-5), (0.0, 5e-4)):
        radii, means2d, depths, conics, _ = gsplat._fully_fused_projection(
            case.means, covars, case.viewmats, case.intrinsics, case.width, case.height, eps2d=eps2d
        )
        view = cpu.View(case.width, case.height, 0.01, 1e10, eps2d)
        rows = cpu.cameras(case.viewmats.numpy(), case.intrinsics.numpy(), view)
        prepared = cpu.prepare(*(s.numpy() for s in case.splats[:3]), None, case.opacities.numpy(), case.colors.numpy())
        for c in range(3):
            frame = cpu.see(prepared, rows[c], view, cpu.Scratch())
            index = torch.from_numpy(prepared.kept[frame.source])
            records = torch.from_numpy(frame.records)
            assert len(index) > 5000
            assert bool((radii[c, index] > 0).all())
            torch.testing.assert_close(records[:, 0:2], means2d[c, index], rtol=0, atol=1e-4)
            torch.testing.assert_close(records[:, 9], depths[c, index], rtol=1e-6, atol=0)
            theirs = conics[c, index] * torch.tensor([0.5, 1.0, 0.5])
            size = theirs.norm(dim=-1, keepdim=True)
            assert ((records[:, 2:5] - theirs) / size).abs().max() < tolerance


def test_reference_projection_sees_the_same_splats_as_the_kernels() -> None:
    """The oracle projects on its own: all that the kernels see must be where the oracle sees it."""
    case = random_case(500, 31)
    view = cpu.View(case.width, case.height, 0.01, 1e10, 0.3)
    rows = cpu.cameras(case.viewmats.numpy(), case.intrinsics.numpy(), view)
    prepared = cpu.prepare(*(s.numpy() for s in case.splats[:3]), None, case.opacities.numpy(), case.colors.numpy())
    frame = cpu.see(prepared, rows[1], view, cpu.Scratch())
    index = torch.from_numpy(prepared.kept[frame.source])
    seen = project(
        case.means.double(), covariances(case.quats.double(), case.scales.double()), case.opacities.double(),
        case.viewmats[1].double(), case.intrinsics[1].double(), case.width, case.height, 0.01, 1e10, 0.3,
    )  # fmt: skip
    place = torch.full((500,), -1)
    place[seen.indices] = torch.arange(len(seen.indices))
    at = place[index]
    assert len(index) > 300 and bool((at >= 0).all())
    records = torch.from_numpy(frame.records).double()
    torch.testing.assert_close(records[:, :2], seen.means2d[at], rtol=0, atol=1e-4)
    torch.testing.assert_close(records[:, 2:5], seen.conics[at] * torch.tensor([0.5, 1, 0.5]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(records[:, 9], seen.depths[at], rtol=1e-6, atol=0)


def test_uint8_frames_are_the_truncated_float_frames() -> None:
    case = random_case(800, 32, scale=0.05)
    images, _ = render(case, backgrounds=BACKGROUND)
    frames = render_uint8(
        *case.splats, case.viewmats, case.intrinsics, case.width, case.height, backgrounds=BACKGROUND, eps2d=case.eps2d
    )
    assert frames.dtype == torch.uint8 and frames.shape == images.shape
    expected = (255 * images.clamp(0, 1)).to(torch.uint8)
    difference = frames.int() - expected.int()
    assert difference.abs().max() <= 1  # the last bit of a float may decide a truncation
    assert (difference != 0).float().mean() < 1e-3


def test_splat_scales_scale_the_splats_of_their_camera() -> None:
    case = random_case(300, 33)
    factors = torch.tensor([1.0, 0.4, 1.7])
    arguments = case.viewmats, case.intrinsics, case.width, case.height
    frames = render_uint8(*case.splats, *arguments, splat_scales=factors)
    for c, factor in enumerate(factors):
        scaled = case.means, case.quats, case.scales * factor, case.opacities, case.colors
        expected = render_uint8(*scaled, *arguments)[c]
        assert (frames[c].int() - expected.int()).abs().max() <= 1
