"""The benchmark scene: 4 views of 256x256 pixels of a sphere, a box and a torus, one splat per pixel.

It has the statistics of a decoded object (60 % of the pixels hit it, most of the rest are nearly transparent, scales
are anisotropic around 0.003) without needing any weights.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

FOCAL = 1.3889  # in image widths
DISTANCE = 1.4


class Scene(NamedTuple):
    """Splats in gsplat's conventions."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] wxyz
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    colors: Tensor  # [N, 3]


class Cameras(NamedTuple):
    """World-to-camera (OpenCV) and pixel intrinsics."""

    viewmats: Tensor  # [C, 4, 4]
    intrinsics: Tensor  # [C, 3, 3]


def orbit(
    views: int, size: int, elevation_deg: float = 15.0, distance: float = DISTANCE, focal: float = FOCAL
) -> Cameras:
    """Cameras on a circle around the z axis, looking at the origin, z up."""
    rows = []
    for i in range(views):
        azimuth, elevation = 2 * math.pi * i / views, math.radians(elevation_deg)
        eye = distance * torch.tensor(
            [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)],
            dtype=torch.float64,
        )
        forward = -eye / eye.norm()
        right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
        right = right / right.norm()
        down = torch.linalg.cross(forward, right)
        rotation = torch.stack([right, down, forward])
        matrix = torch.eye(4, dtype=torch.float64)
        matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ eye
        rows.append(matrix)
    k = torch.tensor([[focal * size, 0, size / 2], [0, focal * size, size / 2], [0, 0, 1]], dtype=torch.float32)
    return Cameras(torch.stack(rows).float(), k.expand(views, 3, 3).contiguous())


def signed_distance(p: Tensor) -> Tensor:
    """Sphere, box and torus; p [..., 3] -> [...]."""
    sphere = (p - p.new_tensor([0.0, 0.0, 0.12])).norm(dim=-1) - 0.27
    q = (p - p.new_tensor([0.0, 0.0, -0.22])).abs() - p.new_tensor([0.30, 0.22, 0.14])
    box = q.clamp(min=0).norm(dim=-1) + q.amax(dim=-1).clamp(max=0)
    ring = torch.stack([p[..., :2].norm(dim=-1) - 0.40, p[..., 2] - 0.02], -1).norm(dim=-1) - 0.07
    return torch.minimum(torch.minimum(sphere, box), ring)


def make_scene(grid: int = 256, seed: int = 0) -> Scene:
    """4 * grid**2 splats: 262,144 at 256, the training case of 16,384 at 64."""
    generator = torch.Generator().manual_seed(seed)
    cameras = orbit(4, grid)
    pixels = torch.arange(grid) + 0.5
    y, x = torch.meshgrid(pixels, pixels, indexing="ij")
    rays = torch.stack([(x - grid / 2) / (FOCAL * grid), (y - grid / 2) / (FOCAL * grid), torch.ones_like(x)], -1)
    means, hits, normals = [], [], []
    for matrix in cameras.viewmats:
        rotation, translation = matrix[:3, :3], matrix[:3, 3]
        origin, direction = (
            -rotation.T @ translation,
            (rays / rays.norm(dim=-1, keepdim=True)).reshape(-1, 3) @ rotation,
        )
        t = torch.full((grid * grid,), DISTANCE - 0.8)
        for _ in range(48):
            t = t + signed_distance(origin + t[:, None] * direction)
        hit = (t < DISTANCE + 0.8) & (signed_distance(origin + t[:, None] * direction).abs() < 2e-3)
        depth = torch.where(hit, t, DISTANCE + 0.3 * torch.randn(t.shape, generator=generator)).clamp(0.7, 2.2)
        points = origin + depth[:, None] * direction
        means.append(points)
        hits.append(hit)
        normals.append(direction)
    position, hit = torch.cat(means), torch.cat(hits)
    n = position.shape[0]
    uniform, normal = torch.rand(n, generator=generator), torch.randn(n, generator=generator)
    solid = torch.where(torch.rand(n, generator=generator) < 0.9, 0.5 + 0.495 * uniform, uniform * 0.5)
    empty = torch.where(torch.rand(n, generator=generator) < 0.01, uniform * 0.5, (0.001 * normal).abs())
    # A coarser grid means larger splats: one splat covers about one pixel of its own view.
    scale = 0.003 * (256 / grid) * torch.exp(0.5 * torch.randn(n, 3, generator=generator))
    return Scene(
        means=position.contiguous(),
        quats=torch.randn(n, 4, generator=generator),
        scales=scale.clamp(0.0005, 0.02 * max(1.0, 256 / grid / 2)),
        opacities=torch.where(hit, solid, empty),
        colors=(0.5 + position + 0.05 * torch.randn(n, 3, generator=generator)).clamp(0, 1),
    )
