"""Losses on images and grids, shared by the stages. All are float32; images are in [0, 1] on white."""

from typing import NamedTuple

import torch
from torch import Tensor

_SSIM_WINDOW = 7


class LossParts(NamedTuple):
    """A total to minimise and its unweighted parts to log."""

    total: Tensor  # [B]
    parts: dict[str, Tensor]  # [B] each, without gradients


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity in [-1, 1] of images in [0, 1], uniform 7 x 7 window (Wang et al. 2004).

    [N, C, H, W] each, sides of at least 7 -> [N].
    """
    c1, c2 = 0.01**2, 0.03**2
    moments = torch.stack([first, second, first * first, second * second, first * second])
    down, across = (_window_means(side).to(moments) for side in moments.shape[-2:])
    # a square window, one axis at a time; on a CPU products take a quarter of the time of F.avg_pool2d
    means = down.T @ moments @ across
    mean_1, mean_2, square_1, square_2, product = means
    variances = square_1 - mean_1 * mean_1 + square_2 - mean_2 * mean_2
    covariance = product - mean_1 * mean_2
    similarity = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1 * mean_1 + mean_2 * mean_2 + c1) * (variances + c2)
    )
    return similarity.flatten(1).mean(1)


def _window_means(side: int) -> Tensor:
    """The matrix that takes a row of pixels to the means of its windows, [side, side - window + 1]."""
    pixels, windows = torch.arange(side)[:, None], torch.arange(side - _SSIM_WINDOW + 1)
    return ((pixels >= windows) & (pixels < windows + _SSIM_WINDOW)) / _SSIM_WINDOW


def masked_mse(prediction: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error where `mask` (0 or 1, broadcast over channels) is set; 0 where it is set nowhere."""
    weight = mask.expand_as(prediction)
    return ((prediction - truth).square() * weight).sum() / weight.sum().clamp_min(1.0)


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean over images of ``-10 log10(mse)``, in dB. [..., C, H, W] in [0, 1] -> []."""
    error = (prediction.clamp(0, 1) - truth).square().flatten(-3).mean(-1)
    return (-10.0 * torch.log10(error.clamp_min(1e-10))).mean()
