"""Losses on images and grids, shared by the stages. All are float32; images are in [0, 1] on white."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsplat.splats.render import Renders
from training.config.common import RenderWeights

_SSIM_WINDOW = 7


class LossParts(NamedTuple):
    """A total to minimise and its unweighted parts to log."""

    total: Tensor  # []
    parts: dict[str, Tensor]


def rendering_loss(renders: Renders, images: Tensor, alphas: Tensor, weights: RenderWeights) -> LossParts:
    """``mse(image) + mse(mask) + w (1 - ssim)`` over all views.

    Args:
        renders: rgb [B, V, 3, H, W] on white, alpha [B, V, 1, H, W].
        images: True images [B, V, 3, H, W] on white.
        alphas: True masks [B, V, 1, H, W].
        weights: Of the terms; the plain sum of the published loss is ``image = mask = 1``.
    """
    image = F.mse_loss(renders.rgb, images)
    mask = F.mse_loss(renders.alpha, alphas)
    total = weights.image * image + weights.mask * mask
    parts = {"image_mse": image.detach(), "mask_mse": mask.detach()}
    if weights.ssim:
        structure = 1.0 - ssim(renders.rgb.flatten(0, 1), images.flatten(0, 1))
        total = total + weights.ssim * structure
        parts["dssim"] = structure.detach()
    return LossParts(total, parts)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Mean structural similarity in [-1, 1] of images in [0, 1], uniform 7 x 7 window (Wang et al. 2004).

    [N, C, H, W] each, sides of at least 7 -> [].
    """
    c1, c2 = 0.01**2, 0.03**2

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, _SSIM_WINDOW, stride=1)

    mean_1, mean_2 = mean(first), mean(second)
    variance_1 = mean(first * first) - mean_1 * mean_1
    variance_2 = mean(second * second) - mean_2 * mean_2
    covariance = mean(first * second) - mean_1 * mean_2
    similarity = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1 * mean_1 + mean_2 * mean_2 + c1) * (variance_1 + variance_2 + c2)
    )
    return similarity.mean()


def masked_mse(prediction: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error where `mask` (0 or 1, broadcast over channels) is set; 0 where it is set nowhere."""
    weight = mask.expand_as(prediction)
    return ((prediction - truth).square() * weight).sum() / weight.sum().clamp_min(1.0)


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Mean over images of ``-10 log10(mse)``, in dB. [..., C, H, W] in [0, 1] -> []."""
    error = (prediction.clamp(0, 1) - truth).square().flatten(-3).mean(-1)
    return (-10.0 * torch.log10(error.clamp_min(1e-10))).mean()
