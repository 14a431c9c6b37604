"""The rendering loss: every term, its weight, and the growth of the perceptual term."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffsplat.backbones import PICO
from diffsplat.geometry.cameras import unproject_depth
from diffsplat.splats.render import Renders, surface_normals
from training.config.common import RenderWeights
from training.config.recon import ReconConfig
from training.data.sample import Batch, collate
from training.losses import ssim
from training.rendering_loss import Maps, RenderingLoss, normal_error, published_normal_error
from training.stages.common import batch_cameras, dataset

ALONE = {"image": 0.0, "mask": 0.0, "perceptual": "none"}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def maps(seed: int) -> Maps:
    shape = (2, 3)
    return Maps(*(noise(4 * seed + n, *shape, channels, 16, 16) for n, channels in enumerate((3, 1, 3, 3))))


def loss(**weights: object) -> RenderingLoss:
    return RenderingLoss(RenderWeights(**weights), PICO.geometry)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def batch() -> Batch:
    source = dataset(ReconConfig().data.__class__(objects=2, views=5, pool_size=1), "pico", False)
    return collate([source.sample(index, np.random.default_rng(index)) for index in range(2)])


def test_it_is_the_weighted_sum_of_its_terms_for_each_object() -> None:
    shown, truth = maps(0), maps(1)
    every = loss(image=2.0, mask=3.0, coord=5.0, normal=7.0, ssim=11.0).compare(shown, truth, 0)

    def mean(first: Tensor | None, second: Tensor | None) -> Tensor:
        assert first is not None and second is not None
        return F.mse_loss(first, second, reduction="none").mean(dim=(1, 2, 3, 4))

    structure = 1 - ssim(shown.rgb.flatten(0, 1), truth.rgb.flatten(0, 1)).unflatten(0, (2, 3)).mean(1)
    assert shown.normals is not None and truth.normals is not None
    expected = {
        "image_mse": mean(shown.rgb, truth.rgb),
        "mask_mse": mean(shown.alpha, truth.alpha),
        "coord_mse": mean(shown.coords, truth.coords),
        "normal_error": normal_error(shown.normals, truth.normals, truth.alpha),
        "dssim": structure,
    }
    assert every.parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(every.parts[name], value)
    total = sum(weight * value for weight, value in zip((2, 3, 5, 7, 11), expected.values(), strict=True))
    torch.testing.assert_close(every.total, total)


def test_defaults_are_image_mask_and_a_fifth_of_the_dissimilarity() -> None:
    """The plain sum of the published loss, with SSIM for LPIPS."""
    shown, truth = maps(0), maps(1)
    total, parts = loss().compare(shown, truth, 0)
    torch.testing.assert_close(total, parts["image_mse"] + parts["mask_mse"] + 0.2 * parts["dssim"])


def test_normals_are_compared_as_vectors_where_the_object_is_solid() -> None:
    up = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(1, 1, 3, 2, 2)
    tilted = torch.tensor([math.sin(1.0), math.cos(1.0), 0.0])[:, None, None].expand(1, 1, 3, 2, 2)
    alpha = torch.ones(1, 1, 1, 2, 2)
    alpha[..., 1] = 0.5  # no matter what stands there
    for other, expected in ((up, 0.0), (-up, 2.0), (tilted, 1 - math.cos(1.0))):
        shown = (0.5 * other + 0.5).clone()
        shown[..., 1] = 0.123
        assert normal_error(shown, 0.5 * up + 0.5, alpha).item() == pytest.approx(expected, abs=1e-6)
    assert normal_error(0.5 * up, 0.5 * up, torch.zeros_like(alpha)).item() == 0.0  # nothing to see


def test_compat_compares_the_codes_of_normals_over_all_pixels() -> None:
    shown, truth = maps(0), maps(1)
    published = RenderingLoss(RenderWeights(normal=0.5, coord=0.0, **ALONE), PICO.geometry, compat=True)  # type: ignore[arg-type]
    assert shown.normals is not None and truth.normals is not None
    expected = 1 - F.cosine_similarity(shown.normals, truth.normals, dim=2).mean(dim=(1, 2, 3))
    torch.testing.assert_close(published.compare(shown, truth, 0).total, 0.5 * expected)
    assert not torch.allclose(expected, normal_error(shown.normals, truth.normals, truth.alpha), rtol=0.1)
    opposite = published_normal_error(
        torch.tensor([1.0, 0.5, 0.5]).reshape(1, 1, 3, 1, 1), torch.tensor([0.0, 0.5, 0.5]).reshape(1, 1, 3, 1, 1),
        torch.ones(1, 1, 1, 1, 1),
    )  # fmt: skip
    assert opposite.item() == pytest.approx(1 - 1 / math.sqrt(3), abs=1e-6)  # 0.42, where vectors give 2


def test_normals_and_coordinates_of_true_depth_are_those_of_the_object(batch: Batch) -> None:
    """The maps that the loss makes from depth and alpha, against the records' own."""
    criterion = loss(coord=1.0, normal=1.0)
    true = Renders(batch.images_rgb, batch.alphas, batch.depths)
    shown = criterion.maps(true, batch_cameras(batch))
    assert shown.coords is not None and shown.normals is not None
    solid = (batch.alphas == 1.0).expand_as(batch.coords)
    torch.testing.assert_close(shown.coords[solid], batch.coords[solid], rtol=0, atol=2e-3)
    assert normal_error(shown.normals, batch.normals, batch.alphas).max() < 0.25  # edges and silhouettes are smeared
    points = unproject_depth(batch.depths, *batch_cameras(batch), "pixel_centers")
    normals = surface_normals(points)
    inside = -F.max_pool2d(-batch.alphas.flatten(0, 1), 5, 1, 2).unflatten(0, batch.alphas.shape[:2]) == 1.0
    cosine = F.cosine_similarity(normals, 2 * batch.normals - 1, dim=2)[:, :, None][inside]
    assert cosine.median() > 0.995
    towards = F.cosine_similarity(normals, batch.camera_to_world[..., :3, 3, None, None] - points, dim=2)
    assert (towards[:, :, None][inside] > 0).float().mean() > 0.99


def test_depth_has_a_gradient_through_coordinates_and_normals(batch: Batch) -> None:
    for weights in ({"coord": 1.0}, {"normal": 1.0}):
        depth = (batch.depths + 0.05 * noise(0, *batch.depths.shape)).requires_grad_()
        total, _ = loss(**{**ALONE, **weights})(Renders(batch.images_rgb, batch.alphas, depth), batch, 0)
        total.mean().backward()
        assert depth.grad is not None and depth.grad.abs().max() > 0


def test_the_perceptual_term_grows_from_its_start_to_its_full_weight() -> None:
    shown, truth = maps(0), maps(1)
    ramped = loss(**{**ALONE, "perceptual": "ssim"}, ssim=4.0, perceptual_start=100, perceptual_full=300)
    full = loss(**{**ALONE, "perceptual": "ssim"}, ssim=4.0).compare(shown, truth, 0).total
    for step, share in ((0, 0.0), (100, 0.0), (150, 0.25), (200, 0.5), (300, 1.0), (10**6, 1.0)):
        total, parts = ramped.compare(shown, truth, step)
        torch.testing.assert_close(total, share * full)
        assert ("dssim" in parts) == (share > 0)
