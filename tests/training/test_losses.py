"""Losses on images."""

import pytest
import torch

from training.losses import masked_mse, psnr, ssim


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_ssim_is_one_for_equal_images_and_less_for_others() -> None:
    first, second = images(0, 2, 3, 16, 16), images(1, 2, 3, 16, 16)
    torch.testing.assert_close(ssim(first, first), torch.ones(2))
    torch.testing.assert_close(ssim(first, second), ssim(second, first))
    assert (ssim(first, second) < 0.2).all()
    closer = ssim(first, 0.5 * (first + second))
    assert (ssim(first, second) < closer).all() and (closer < 1).all()


def test_ssim_of_constant_images_follows_the_formula() -> None:
    dark, light = torch.full((1, 1, 8, 8), 0.2), torch.full((1, 1, 8, 8), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)  # no variance: the structure term is 1
    assert ssim(dark, light).item() == pytest.approx(expected, abs=5e-4)


def test_ssim_takes_every_window_of_seven_pixels() -> None:
    first, second = images(2, 1, 1, 9, 8), images(3, 1, 1, 9, 8)
    values = []
    for y in range(9 - 6):
        for x in range(8 - 6):
            a, b = (image[0, 0, y : y + 7, x : x + 7].double() for image in (first, second))
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            variances = a.var(correction=0) + b.var(correction=0)
            luminance = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
            values.append(luminance * (2 * covariance + 9e-4) / (variances + 9e-4))
    assert ssim(first, second).item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-5)


def test_psnr_of_a_known_error_is_a_mean_over_images() -> None:
    truth = torch.full((2, 3, 8, 8), 0.5)
    prediction = truth + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert psnr(prediction, truth).item() == pytest.approx((20 + 40) / 2, abs=1e-3)


def test_masked_mse_counts_masked_pixels_of_all_channels_only() -> None:
    prediction, truth = torch.zeros(1, 2, 3, 4, 4), torch.ones(1, 2, 3, 4, 4)
    mask = torch.zeros(1, 2, 1, 4, 4)
    assert masked_mse(prediction, truth, mask).item() == 0.0
    mask[0, 0, 0, 1, 1] = 1
    truth[0, 0, :, 1, 1] = torch.tensor([1.0, 2.0, 3.0])
    assert masked_mse(prediction, truth, mask).item() == pytest.approx((1 + 4 + 9) / 3)
