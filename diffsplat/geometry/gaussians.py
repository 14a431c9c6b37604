"""Splat grids and Gaussians.

A grid holds one Gaussian per pixel and view, 12 channels nominally in [-1, 1]:

    0:3 rgb | 3:6 scale | 6:10 quaternion (w, x, y, z) | 10:11 opacity | 11:12 depth offset

Axes: B objects, V views, N = V * H * W Gaussians (view slowest, then row, then column).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsplat.backbones import SplatGeometry
from diffsplat.geometry.cameras import Cameras, unproject_depth
from diffsplat.geometry.eigen import eigenvectors_of_symmetric

GRID_LAYOUT = {
    "rgb": slice(0, 3),
    "scale": slice(3, 6),
    "quat_wxyz": slice(6, 10),
    "opacity": slice(10, 11),
    "depth": slice(11, 12),
}
GRID_WIDTH = 12


class Gaussians(NamedTuple):
    """Gaussians of B objects in world units."""

    means: Tensor  # [B, N, 3]
    rgbs: Tensor  # [B, N, 3] nominally in [0, 1]
    opacities: Tensor  # [B, N] after the sigmoid
    scales: Tensor  # [B, N, 3] linear
    quats_wxyz: Tensor  # [B, N, 4] unit length only where the geometry says so


def grid_to_gaussians(
    grid: Tensor,
    cameras: Cameras,
    geometry: SplatGeometry,
    opacity_threshold: float = 0.0,
    *,
    positions: Tensor | None = None,
    offsets: Tensor | None = None,
    normalized: bool = True,
) -> Gaussians:
    """Activate a grid and lift its pixels into the world (model of the published renderer).

    Args:
        grid: [B, V, 12, H, W] in [-1, 1].
        cameras: of the grid's views, [B, V] or [V].
        geometry: scale range, pixel rule, and whether quaternions are normalised.
        opacity_threshold: opacities not strictly above it become 0.
        positions: [B, V, 3, H, W] world positions instead of the unprojected depth channel.
        offsets: [B, V, 3, H, W] added to the positions.
        normalized: False takes all channels in renderer units already: no maps, and depth counts from the camera.

    Returns:
        Gaussians of shape [B, V * H * W].
    """
    parts = {name: grid[:, :, channels] for name, channels in GRID_LAYOUT.items()}
    rgb, scale, opacity, depth = parts["rgb"], parts["scale"], parts["opacity"], parts["depth"]
    camera_to_world, intrinsics = cameras
    if normalized:
        rgb, opacity = 0.5 * rgb + 0.5, 0.5 * opacity + 0.5
        t = 0.5 * scale + 0.5
        scale = geometry.scale_min * t + geometry.scale_max * (1.0 - t)  # the published map is inverted: -1 is largest
        depth = depth + camera_to_world[..., :3, 3].norm(dim=-1)[..., None, None, None]  # [(B,) V, 1, 1, 1]
    opacity = torch.where(opacity > opacity_threshold, opacity, torch.zeros_like(opacity))
    if positions is None:
        positions = unproject_depth(depth, camera_to_world, intrinsics, geometry.unproject_pixel_rule)
    if offsets is not None:
        positions = positions + offsets
    quats = _flatten(parts["quat_wxyz"])
    if geometry.unit_quats:
        quats = F.normalize(quats, dim=-1)
    return Gaussians(_flatten(positions), _flatten(rgb), _flatten(opacity)[..., 0], _flatten(scale), quats)


def _flatten(channels: Tensor) -> Tensor:
    """[B, V, C, H, W] -> [B, V * H * W, C]."""
    return channels.permute(0, 1, 3, 4, 2).flatten(1, 3)


def rotation_matrices(quats_wxyz: Tensor) -> Tensor:
    """The plain quaternion formula [..., 4] -> [..., 3, 3], WITHOUT normalisation.

    A rotation only for unit quaternions; otherwise |q|^2 R + (1 - |q|^2) I, which the published rasterizer draws.
    """
    w, x, y, z = quats_wxyz.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def covariances(gaussians: Gaussians) -> Tensor:
    """World covariances [B, N, 3, 3], with quaternions taken as they are."""
    factor = rotation_matrices(gaussians.quats_wxyz) * gaussians.scales[..., None, :]  # R diag(s)
    return factor @ factor.mT


def canonicalize(gaussians: Gaussians, geometry: SplatGeometry) -> Gaussians:
    """The same Gaussians with unit quaternions, so that every renderer and file format draws the same object.

    With `geometry.unit_quats` the quaternions are only normalised. Otherwise their length shapes the splat: the
    covariance is decomposed in float64 into new scales, growing, and a proper rotation.
    """
    if geometry.unit_quats:
        return gaussians._replace(quats_wxyz=F.normalize(gaussians.quats_wxyz, dim=-1))
    double = gaussians._replace(scales=gaussians.scales.double(), quats_wxyz=gaussians.quats_wxyz.double())
    variances, axes = eigenvectors_of_symmetric(covariances(double))  # [B, N, 3], [B, N, 3, 3]
    dtype = gaussians.scales.dtype
    return gaussians._replace(scales=variances.clamp_min(0.0).sqrt().to(dtype), quats_wxyz=_quaternions(axes).to(dtype))


def _quaternions(rotations: Tensor) -> Tensor:
    """Unit quaternions (w, x, y, z) of rotation matrices [..., 3, 3]; the largest component is positive."""
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = rotations.flatten(-2).unbind(-1)
    # 4 q q^T, row by row (Bar-Itzhack): the row with the largest diagonal entry is the numerically safe one
    diagonal = torch.stack([1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22], dim=-1)
    rows = torch.stack(
        [
            torch.stack([diagonal[..., 0], m21 - m12, m02 - m20, m10 - m01], dim=-1),
            torch.stack([m21 - m12, diagonal[..., 1], m10 + m01, m02 + m20], dim=-1),
            torch.stack([m02 - m20, m10 + m01, diagonal[..., 2], m21 + m12], dim=-1),
            torch.stack([m10 - m01, m02 + m20, m21 + m12, diagonal[..., 3]], dim=-1),
        ],
        dim=-2,
    )
    best = diagonal.argmax(dim=-1)[..., None, None].expand(*diagonal.shape[:-1], 1, 4)
    return F.normalize(rows.gather(-2, best)[..., 0, :], dim=-1)


def to_array(gaussians: Gaussians) -> Tensor:
    """One object as the wire carries it: [N, 14], columns of `contract.GAUSSIAN_COLUMNS`."""
    if gaussians.means.shape[0] != 1:
        raise ValueError(f"gaussians: {gaussians.means.shape[0]} objects, an array holds exactly 1")
    one = Gaussians(*(values[0] for values in gaussians))
    return torch.cat([one.means, one.rgbs, one.opacities[:, None], one.scales, one.quats_wxyz], dim=-1)


def from_array(array: Tensor) -> Gaussians:
    """Inverse of `to_array`: [N, 14] -> Gaussians with B = 1."""
    if array.dim() != 2 or array.shape[1] != 14:
        raise ValueError(f"array: shape {tuple(array.shape)}, expected [N, 14]")
    means, rgbs, opacities, scales, quats = array[None].split([3, 3, 1, 3, 4], dim=-1)
    return Gaussians(means, rgbs, opacities[..., 0], scales, quats)
