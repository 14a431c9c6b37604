"""Figures of images against true ones, of images against prompts, and of sets of images; as published where published.

N images or prompts, [0, 1].
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SSIM_WINDOW = 7


class Figure(NamedTuple):
    """A figure over many images."""

    mean: float
    std: float


class TextAlignment(NamedTuple):
    """How well images show their prompts."""

    similarity: float  # mean cosine of an image's and its prompt's embedding
    r_precision: float  # share of images whose nearest prompt of the list is their own


def image_psnr(shown: Tensor, truth: Tensor) -> Figure:
    """PSNR of each image in dB, averaged: [N, 3, H, W] twice. The deviation is that of a sample, as published."""
    errors = (shown.double() - truth.double()).square().flatten(1).mean(1)
    values = -10.0 * torch.log10(errors.clamp_min(1e-10))
    return Figure(values.mean().item(), values.std().item() if len(values) > 1 else 0.0)


def image_ssim(shown: Tensor, truth: Tensor) -> Figure:
    """SSIM of each image as scikit-image computes it of 8-bit images, averaged: [N, 3, H, W] twice.

    Values are cut to 8 bits, windows have 7 x 7 equal weights, and moments are those of a sample, unlike in the loss.
    """
    x, y = ((255.0 * images.clamp(0, 1)).to(torch.uint8).double() for images in (shown, truth))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    sample = _SSIM_WINDOW**2 / (_SSIM_WINDOW**2 - 1)

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, _SSIM_WINDOW, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    variances = sample * (mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2)
    covariance = sample * (mean(x * y) - mean_x * mean_y)
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    values = similarity.flatten(1).mean(1)
    return Figure(values.mean().item(), values.std(correction=0).item())


def distances(values: Tensor) -> Figure:
    """Mean and deviation of one distance per image, [N]."""
    return Figure(values.mean().item(), values.std(correction=0).item())


def text_alignment(image_embeddings: Tensor, text_embeddings: Tensor) -> TextAlignment:
    """Embeddings of N images and of their N prompts in the same order, [N, D] each, of any length."""
    images, texts = (F.normalize(values.double(), dim=1) for values in (image_embeddings, text_embeddings))
    similarities = images @ texts.T
    own = similarities.argmax(dim=1) == torch.arange(len(images), device=images.device)
    return TextAlignment(similarities.diagonal().mean().item(), own.double().mean().item())


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Distance of two sets of features, [N, D] and [M, D], taken as normal distributions.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``. With fewer samples than features the covariances are singular,
    which the trace allows: its last term is the sum of the singular values of A1^T A2 where C = A A^T.
    """
    means, roots = [], []
    for features in (first.double(), second.double()):
        if len(features) < 2:
            raise ValueError(f"features: {len(features)} samples, a covariance needs at least 2")
        mean = features.mean(dim=0)
        means.append(mean)
        roots.append((features - mean).T / (len(features) - 1) ** 0.5)  # [D, N]
    traces = sum(root.square().sum() for root in roots)
    overlap = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    return float((means[0] - means[1]).square().sum() + traces - 2.0 * overlap)
