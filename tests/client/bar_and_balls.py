"""An object of which no two sides are alike, as the rasterizer draws it, to be held against pictures of viewers."""

import numpy as np
import torch
from diffsplat_client import SplatCloud

from diffsplat.geometry.cameras import orbit_cameras, pixel_intrinsics, world_to_camera
from diffsplat.rasterize import render_uint8

LIT, DARK = 140, 90  # levels of a colour's own channel, and of the two others


def bar_and_balls() -> SplatCloud:
    """A tilted red bar in front, a green ball right, a blue one on top, a black one behind.

    The bar comes first, so that splats drawn in their own order would hide it; it is of long splats, turned by
    quaternions that are not of unit length.
    """
    rng = np.random.default_rng(0)
    along = np.linspace(-0.3, 0.3, 40)
    angle = np.deg2rad(30)  # about z
    bar = np.stack([along * np.cos(angle), along * np.sin(angle), np.full(40, 0.3)], axis=1)
    centers = np.array([[0.35, 0, 0], [0, 0.35, 0], [0.0, 0.0, -0.3]])
    balls = np.concatenate([center + rng.normal(size=(200, 3)) * 0.03 for center in centers])
    colors = np.array([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.05, 0.05, 0.05]])
    counts = [40, 200, 200, 200]
    turn = 2.0 * np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
    return SplatCloud(
        positions=np.concatenate([bar, balls]),
        rgb=np.repeat(colors, counts, axis=0),
        opacity=np.full(640, 0.9),
        scales=np.repeat([[0.05, 0.02, 0.01], [0.02, 0.02, 0.02]], [40, 600], axis=0),
        quats_wxyz=np.repeat([turn, [1, 0, 0, 0]], [40, 600], axis=0),
    )


def drawn(cloud: SplatCloud, size: int, elevation_deg: float, azimuth_deg: float, distance: float) -> np.ndarray:
    """The rasterizer's image on white, uint8 [size, size, 3]."""
    cameras = orbit_cameras(elevation_deg, azimuth_deg, distance)
    (frame,) = render_uint8(
        torch.from_numpy(cloud.positions),
        torch.nn.functional.normalize(torch.from_numpy(cloud.quats_wxyz), dim=-1),
        torch.from_numpy(cloud.scales),
        torch.from_numpy(cloud.opacity),
        torch.from_numpy(cloud.rgb),
        world_to_camera(cameras.camera_to_world)[None],
        pixel_intrinsics(cameras.intrinsics, size, size)[None],
        size,
        size,
        backgrounds=torch.ones(1, 3),
    )
    return frame.numpy()


def difference(image: np.ndarray, other: np.ndarray) -> float:
    """Mean difference over the pixels where either image shows something, in levels of 255."""
    seen = (np.minimum(image, other) < 250).any(axis=-1)
    return float(np.abs(image.astype(float) - other)[seen].mean())


def places(image: np.ndarray, channel: int) -> np.ndarray:
    """Rows and columns [n, 2] of the pixels of one primary colour."""
    others = np.delete(image, channel, axis=2).max(axis=2)
    return np.argwhere((image[:, :, channel] > LIT) & (others < DARK))
