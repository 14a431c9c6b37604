"""Splats drawn from fixed poses by the renderer of training, to be held against the frames of the stages."""

import numpy as np
import torch

from diffsplat.backbones import SplatGeometry
from diffsplat.geometry.cameras import orbit_cameras
from diffsplat.geometry.gaussians import Gaussians
from diffsplat.splats.render import render

FRAME = 96
POSES = np.array([[10, 0, 1.4, 1], [-35, 100, 1.2, 1], [60, 215, 2.0, 0.5]], np.float32)
# format -> what its quantisation may change of a frame, in levels of 255: the largest difference and the mean one
BOUNDS = {
    "raw": (1, 0.001),
    "ply": (1, 0.001),
    "ply_compat": (1, 0.001),
    "splat": (16, 0.3),
    "spz": (26, 0.8),
    "spz4": (26, 0.8),
    "glb": (1, 0.001),
    "usdz": (1, 0.001),
    "sog": (16, 0.5),
}


def draw(gaussians: Gaussians, geometry: SplatGeometry) -> np.ndarray:
    """One object [1, N] from POSES: [F, FRAME, FRAME, 3] uint8. It knows nothing of the stages."""
    frames = []
    for elevation_deg, azimuth_deg, distance, splat_scale in torch.from_numpy(POSES):
        cameras = orbit_cameras(elevation_deg[None], azimuth_deg[None], distance[None])
        image = render(gaussians, cameras, FRAME, FRAME, geometry, splat_scale=float(splat_scale)).rgb[0, 0]
        frames.append((255 * image.clamp(0, 1)).to(torch.uint8).permute(1, 2, 0))
    return torch.stack(frames).numpy()


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of two sets of frames, in levels of 255."""
    return np.abs(first.astype(int) - second)
