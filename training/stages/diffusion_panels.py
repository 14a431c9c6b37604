"""Pictures of what a denoiser makes, beside what its latents hold."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffsplat.backbones import BackboneSpec, SplatGeometry
from diffsplat.geometry.cameras import Cameras, generated_view_cameras
from diffsplat.geometry.gaussians import grid_to_gaussians
from diffsplat.splats.gsvae import GSVAE
from diffsplat.splats.render import render
from diffsplat.text.features import TextFeatures
from training.conditions import TextSource
from training.latents import LatentBatch
from training.sampling import Asked
from training.stages.common import comparison_panel


def asked_objects(batch: LatentBatch, text: TextSource, spec: BackboneSpec, images: Tensor | None) -> list[Asked]:
    """Each object of a batch as a request: its caption and, for image models, its image and elevation.

    Args:
        batch: B objects.
        text: Of the run.
        spec: Its backbone.
        images: [B, C, h, w] condition latents of image models.
    """
    both = torch.tensor([False, True])
    asked = []
    for row, (caption, uid) in enumerate(zip(batch.captions, batch.uids, strict=True)):
        features: TextFeatures = text.features([caption] * 2, [uid] * 2, both)
        elevation = None if images is None else elevation_deg(batch.cameras.camera_to_world[row, 0])
        asked.append(Asked(caption, features, elevation, None if images is None else images[row]))
    return asked


def elevation_deg(camera_to_world: Tensor) -> float:
    """Elevation of a camera on an orbit of the y-up world, positive above."""
    position = camera_to_world[:3, 3]
    return float(torch.rad2deg(torch.asin(position[1] / position.norm())))


def generated_cameras(asked: Sequence[Asked], spec: BackboneSpec) -> Cameras:
    """Cameras [P, V] of generated objects."""
    cameras = []
    for entry in asked:
        elevation = spec.elevation_deg if entry.elevation_deg is None else entry.elevation_deg
        assert elevation is not None
        cameras.append(generated_view_cameras(elevation, spec.distance, spec.geometry.views))
    return Cameras(*(torch.stack(values) for values in zip(*cameras, strict=True)))


def images_of(gsvae: GSVAE, latents: Tensor, cameras: Cameras, geometry: SplatGeometry) -> Tensor:
    """Latents [P, V, C, h, w] seen from their own cameras [P, V]: [P, V, 3, H, W] on the autoencoder's device."""
    device = next(gsvae.parameters()).device
    cameras = Cameras(*(values.to(device) for values in cameras))
    gaussians = grid_to_gaussians(gsvae.decode(latents.to(device)), cameras, geometry)
    return render(gaussians, cameras, geometry.grid_size, geometry.grid_size, geometry).rgb


def beside(decoded: Tensor, generated: Tensor) -> np.ndarray:
    """Objects through the autoencoder, each beside a sample of the denoiser: [P, V, 3, H, W] both."""
    return comparison_panel(torch.cat([decoded, generated], dim=1), objects=len(decoded))
