"""The hand-written gradients against autograd through the float64 oracle, and the oracle against finite differences."""

import pytest
import torch
from torch import Tensor

from diffsplat.rasterize import rasterization
from diffsplat.rasterize.torch_reference import covariances, rasterize_reference
from tests.library.rasterize_scenes import CASES, Case, random_case

NAMES = ("means", "quats", "scales", "opacities", "colors")


def cotangents(alphas: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Random ones; depth's only where alpha > 0.01, since its gradient grows as 1 / alpha."""
    g = torch.Generator().manual_seed(99)
    images = torch.randn(*alphas.shape[:-1], channels, generator=g, dtype=torch.float64)
    if channels == 4:
        images[..., 3] *= alphas[..., 0] > 0.01
    return images, torch.randn(alphas.shape, generator=g, dtype=torch.float64)


def both_gradients(case: Case, mode: str, threads: int = 1) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (kernel's gradient, oracle's gradient), backgrounds included."""
    ground = torch.rand(len(case.viewmats), 3, generator=torch.Generator().manual_seed(3))
    fast = [s.clone().requires_grad_() for s in (*case.splats, ground)]
    slow = [s.double().requires_grad_() for s in (*case.splats, ground)]
    images, alphas, _ = rasterization(
        *fast[:5], case.viewmats, case.intrinsics, case.width, case.height,
        backgrounds=fast[5], eps2d=case.eps2d, render_mode=mode, threads=threads,
    )  # fmt: skip
    expected, expected_alphas = rasterize_reference(
        *slow[:5], case.viewmats.double(), case.intrinsics.double(), case.width, case.height,
        backgrounds=slow[5], eps2d=case.eps2d, render_mode=mode,
    )  # fmt: skip
    gi, ga = cotangents(expected_alphas.detach(), images.shape[-1])
    torch.autograd.backward([images, alphas], [gi.float(), ga.float()])
    torch.autograd.backward([expected, expected_alphas], [gi, ga])
    return {n: (a.grad, b.grad) for n, a, b in zip((*NAMES, "backgrounds"), fast, slow, strict=True)}


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("none", "everything_culled")])
def test_gradients_match_the_oracle(name: str) -> None:
    gradients = both_gradients(CASES[name](), "RGB+ED")
    if name == "eps0_isotropic":  # turning a ball changes nothing; what is left is rounding
        got, expected = gradients.pop("quats")
        size = gradients["scales"][1].norm()
        assert got.norm() < 1e-5 * size and expected.norm() < 1e-5 * size
    for tensor, (got, expected) in gradients.items():
        error = float((got - expected).norm() / expected.norm())
        assert error < (2e-3 if tensor == "quats" else 1e-3), f"{tensor}: relative L2 error {error}"
        cosine = torch.nn.functional.cosine_similarity(got.double().flatten(), expected.flatten(), dim=0)
        assert cosine > 0.9999, tensor


@pytest.mark.parametrize("mode", ["RGB", "RGB+D"])
def test_gradients_of_other_modes_match_the_oracle(mode: str) -> None:
    for tensor, (got, expected) in both_gradients(random_case(300, 40), mode).items():
        assert (got - expected).norm() < 1e-3 * expected.norm(), tensor


def test_gradient_of_covariances_is_the_upper_triangle() -> None:
    case = random_case(200, 41)
    covars = covariances(case.quats, case.scales)
    fast, slow = covars.clone().requires_grad_(), covars.double().requires_grad_()
    images, _, _ = rasterization(
        case.means,
        None,
        None,
        case.opacities,
        case.colors,
        case.viewmats,
        case.intrinsics,
        case.width,
        case.height,
        covars=fast,
    )
    expected, _ = rasterize_reference(
        case.means.double(), case.quats, case.scales, case.opacities.double(), case.colors.double(),
        case.viewmats.double(), case.intrinsics.double(), case.width, case.height, covars=slow,
    )  # fmt: skip
    gi = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    images.backward(gi)
    expected.backward(gi.double())
    assert (fast.grad.tril(-1) == 0).all()
    assert (fast.grad - slow.grad).norm() < 1e-3 * slow.grad.norm()


@pytest.mark.parametrize("name", ["none", "everything_culled"])
def test_nothing_visible_has_zero_gradients(name: str) -> None:
    case = CASES[name]()
    splats = [s.clone().requires_grad_() for s in case.splats]
    images, alphas, _ = rasterization(
        *splats, case.viewmats, case.intrinsics, case.width, case.height, render_mode="RGB+ED"
    )
    (images.sum() + alphas.sum()).backward()
    for splat in splats:
        assert splat.grad is not None and splat.grad.shape == splat.shape and (splat.grad == 0).all()


def test_oracle_agrees_with_finite_differences() -> None:
    case = random_case(60, 42, scale=0.08)
    splats = [s.double() for s in case.splats]
    camera = case.viewmats[:1].double(), case.intrinsics[:1].double(), case.width, case.height
    weights = torch.randn(case.height, case.width, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(values: list[Tensor]) -> Tensor:
        images, alphas = rasterize_reference(*values, *camera, render_mode="RGB+D")
        return (images[0] * weights).sum() + alphas.square().sum()

    leaves = [s.clone().requires_grad_() for s in splats]
    loss(leaves).backward()
    g = torch.Generator().manual_seed(4)
    for which, leaf in enumerate(leaves):
        for _ in range(4):
            at = tuple(int(torch.randint(size, (), generator=g)) for size in leaf.shape)
            step = 1e-7  # small: thresholds of alpha make the loss piecewise smooth
            values = []
            for sign in (1, -1):
                moved = [s.clone() for s in splats]
                moved[which][at] += sign * step
                values.append(loss(moved))
            numeric = float((values[0] - values[1]) / (2 * step))
            assert abs(numeric - float(leaf.grad[at])) < 1e-4 * (1 + abs(numeric)), (NAMES[which], at)


def test_gradients_repeat_and_hardly_depend_on_threads() -> None:
    case = random_case(500, 43)
    one, again = both_gradients(case, "RGB+ED", threads=1), both_gradients(case, "RGB+ED", threads=1)
    two, two_again = both_gradients(case, "RGB+ED", threads=2), both_gradients(case, "RGB+ED", threads=2)
    for tensor in NAMES:
        assert torch.equal(one[tensor][0], again[tensor][0])
        assert torch.equal(two[tensor][0], two_again[tensor][0])
        assert (one[tensor][0] - two[tensor][0]).norm() <= 1e-6 * one[tensor][0].norm()


def test_fitting_splats_to_a_target_lowers_the_loss_tenfold() -> None:
    target_case, start = random_case(200, 44, scale=0.08), random_case(200, 45, scale=0.08)
    size = target_case.width, target_case.height
    cameras = target_case.viewmats, target_case.intrinsics
    with torch.no_grad():
        target, _, _ = rasterization(*target_case.splats, *cameras, *size)

    def fit(steps: int, reference: bool) -> list[float]:
        raw = [
            start.means.clone(), start.quats.clone(), start.scales.log(),
            start.opacities.clamp(0.05, 0.95).logit(), start.colors.clone(),
        ]  # fmt: skip
        parameters = [p.requires_grad_() for p in raw]
        optimizer = torch.optim.Adam(parameters, lr=0.03)
        losses = []
        for _ in range(steps):
            means, quats, log_scales, logits, colors = parameters
            splats = means, quats, log_scales.exp(), logits.sigmoid(), colors
            if reference:
                images, _ = rasterize_reference(*splats, *cameras, *size, tiled=True)
            else:
                images, _, _ = rasterization(*splats, *cameras, *size)
            loss = (images - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    losses = fit(100, reference=False)
    assert losses[-1] < losses[0] / 10
    torch.testing.assert_close(torch.tensor(losses[:5]), torch.tensor(fit(5, reference=True)), rtol=1e-3, atol=0)
