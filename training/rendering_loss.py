"""The rendering loss of GSRecon, GSVAE and the denoiser: renders against true views, as images and as surfaces.

    w_image mse(image) + w_mask mse(mask) + w_coord mse(coordinates) + w_normal (1 - cos(normals)) + w_p perceptual

Per object; all in float32. The published rasterizer also draws normals; here they follow from the drawn depth.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsplat.backbones import SplatGeometry
from diffsplat.geometry.cameras import Cameras, unproject_depth
from diffsplat.splats.render import Renders, coordinate_map, surface_normals
from training.config.common import RenderWeights
from training.data.sample import Batch
from training.losses import LossParts
from training.perceptual import open_perceptual


class Maps(NamedTuple):
    """What is compared of V views of B objects; maps in [0, 1] on white."""

    rgb: Tensor  # [B, V, 3, H, W]
    alpha: Tensor  # [B, V, 1, H, W]
    coords: Tensor | None = None  # [B, V, 3, H, W] world position * 0.5 + 0.5; where weighted
    normals: Tensor | None = None  # [B, V, 3, H, W] world normal * 0.5 + 0.5; where weighted


class RenderingLoss:
    """The rendering loss of one stage.

    Args:
        weights: Of the terms.
        geometry: Pixel rule by which depth becomes surface points.
        compat: Compare normals as published: the cosine of their codes in [0, 1], over all pixels.

    Raises:
        ValueError: the perceptual network's weights are not on this machine; the message says how to get them.
    """

    def __init__(self, weights: RenderWeights, geometry: SplatGeometry, compat: bool = False) -> None:
        self.weights = weights
        self.geometry = geometry
        self.compat = compat
        self.perceptual_name, self.perceptual = open_perceptual(weights.perceptual)

    def to(self, device: torch.device | str) -> "RenderingLoss":
        """Move the perceptual network; returns itself."""
        if self.perceptual is not None:
            self.perceptual.to(device)
        return self

    def __call__(self, renders: Renders, batch: Batch, step: int) -> LossParts:
        """Loss of each object of a batch after `step` updates, [B].

        Args:
            renders: Of the batch's cameras.
            batch: True views.
            step: Decides how much the perceptual term counts yet.
        """
        cameras = Cameras(batch.camera_to_world, batch.intrinsics)
        truth = Maps(batch.images_rgb, batch.alphas, batch.coords, batch.normals)
        return self.compare(self.maps(renders, cameras), truth, step)

    def maps(self, renders: Renders, cameras: Cameras) -> Maps:
        """What of a render is compared."""
        rgb, alpha, depth = renders
        rule = self.geometry.unproject_pixel_rule
        coords = coordinate_map(depth, alpha, cameras, rule) if self.weights.coord else None
        if not self.weights.normal:
            return Maps(rgb, alpha, coords)
        normals = surface_normals(unproject_depth(depth, *cameras, rule))
        return Maps(rgb, alpha, coords, (0.5 * normals + 0.5) * alpha + (1.0 - alpha))

    def compare(self, shown: Maps, truth: Maps, step: int) -> LossParts:
        """Loss of each object [B] and its unweighted terms."""
        weights = self.weights
        terms = {
            "image_mse": (weights.image, _mse(shown.rgb, truth.rgb)),
            "mask_mse": (weights.mask, _mse(shown.alpha, truth.alpha)),
        }
        if weights.coord:
            assert shown.coords is not None and truth.coords is not None
            terms["coord_mse"] = (weights.coord, _mse(shown.coords, truth.coords))
        if weights.normal:
            assert shown.normals is not None and truth.normals is not None
            errors = published_normal_error if self.compat else normal_error
            terms["normal_error"] = (weights.normal, errors(shown.normals, truth.normals, truth.alpha))
        share = weights.ramp(step)
        if share and self.perceptual is not None:
            name, weight = _PERCEPTUAL_TERMS[self.perceptual_name]
            pairs = (shown.rgb.flatten(0, 1), truth.rgb.flatten(0, 1))  # [B * V, 3, H, W]
            distances = self.perceptual.distance(*pairs, weights.perceptual_size).unflatten(0, shown.rgb.shape[:2])
            terms[name] = (share * getattr(weights, weight), distances.mean(1))
        total = torch.stack([weight * error for weight, error in terms.values()]).sum(0)
        return LossParts(total, {name: error.detach() for name, (_, error) in terms.items()})


_PERCEPTUAL_TERMS = {"ssim": ("dssim", "ssim"), "lpips": ("lpips", "lpips"), "effnet-feature": ("effnet", "effnet")}


def normal_error(shown: Tensor, truth: Tensor, alpha: Tensor) -> Tensor:
    """1 - cosine of normals, averaged over each object's fully opaque pixels.

    Codes [B, V, 3, H, W] in [0, 1] of unit vectors, true alphas [B, V, 1, H, W] -> [B]; 0 for an object without such
    pixels. Opposite normals score 2.
    """
    solid = (alpha == 1.0)[:, :, 0]  # [B, V, H, W]
    errors = 1.0 - F.cosine_similarity(2.0 * shown - 1.0, 2.0 * truth - 1.0, dim=2)
    return (errors * solid).flatten(1).sum(1) / solid.flatten(1).sum(1).clamp_min(1)


def published_normal_error(shown: Tensor, truth: Tensor, alpha: Tensor) -> Tensor:
    """1 - cosine of the codes themselves over all pixels, as published: opposite normals score only about 0.4."""
    return 1.0 - F.cosine_similarity(shown, truth, dim=2).flatten(1).mean(1)


def _mse(shown: Tensor, truth: Tensor) -> Tensor:
    return (shown - truth).square().flatten(1).mean(1)
