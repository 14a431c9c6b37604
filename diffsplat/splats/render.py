"""Gaussians and cameras to images, differentiable and always in float32.

Axes: B objects, V cameras per object, N Gaussians, H W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffsplat.backbones import PixelRule, SplatGeometry
from diffsplat.geometry.cameras import Cameras, pixel_intrinsics, rotate_map, unproject_depth, world_to_camera
from diffsplat.geometry.gaussians import Gaussians, covariances
from diffsplat.rasterize import rasterization

MIN_DETERMINANT = 1e-6  # of a projected covariance, pixels^4: flatter splats vanish (RaDe-GS rasterizer)


class Renders(NamedTuple):
    """Images of B objects from V cameras each."""

    rgb: Tensor  # [B, V, 3, H, W] on the background
    alpha: Tensor  # [B, V, 1, H, W]
    depth: Tensor  # [B, V, 1, H, W] z-depth weighted by the splats' contributions; 0 where nothing was hit


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    height: int,
    width: int,
    geometry: SplatGeometry,
    background: float = 1.0,
    splat_scale: float = 1.0,
) -> Renders:
    """Draw every object from each of its cameras.

    Args:
        gaussians: [B, N].
        cameras: [B, V] or [V]; no gradient reaches them.
        height: pixels.
        width: pixels.
        geometry: near plane, dilation, quaternion and opacity rules of the weights that made the Gaussians.
        background: grey level of the background.
        splat_scale: factor on all splat sizes.
    """
    with torch.autocast(gaussians.means.device.type, enabled=False):
        gaussians = Gaussians(*(values.float() for values in gaussians))
        gaussians = gaussians._replace(scales=gaussians.scales * splat_scale)
        batch, views = gaussians.means.shape[0], cameras.camera_to_world.shape[-3]
        camera_to_world = cameras.camera_to_world.detach().float().expand(batch, views, 4, 4)
        intrinsics = cameras.intrinsics.detach().float().expand(batch, views, 4)
        cameras = Cameras(camera_to_world, intrinsics)
        # Quaternions of another length than 1 shape the splat; rasterizers normalise them, so they get covariances.
        covars = None if geometry.unit_quats else covariances(gaussians)  # [B, N, 3, 3]
        drawn = []
        for b in range(batch):
            one = Gaussians(*(values[b : b + 1] for values in gaussians))
            covar = None if covars is None else covars[b]
            # the opacity factor depends on the view, so such objects are drawn camera by camera
            groups = [slice(v, v + 1) for v in range(views)] if geometry.opacity_compensation else [slice(None)]
            for group in groups:
                seen = Cameras(camera_to_world[b, group], intrinsics[b, group])
                drawn.append(_draw(one, covar, seen, height, width, geometry, background))
        rgb, alpha, depth = (
            torch.cat(parts).permute(0, 3, 1, 2).unflatten(0, (batch, views)) for parts in zip(*drawn, strict=True)
        )
        return Renders(rgb, alpha, depth)


def _draw(
    one: Gaussians,
    covars: Tensor | None,
    cameras: Cameras,
    height: int,
    width: int,
    geometry: SplatGeometry,
    background: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One object from C cameras -> [C, H, W, 3 | 1 | 1]."""
    viewmats = world_to_camera(cameras.camera_to_world)
    intrinsics = pixel_intrinsics(cameras.intrinsics, height, width)
    opacities = one.opacities
    if geometry.opacity_compensation:
        opacities = opacities * opacity_factors(one, viewmats, intrinsics, height, width)[:, 0]
    images, alphas, _ = rasterization(
        one.means[0],
        None if covars is not None else one.quats_wxyz[0],
        None if covars is not None else one.scales[0],
        opacities[0],
        one.rgbs[0],
        viewmats,
        intrinsics,
        width,
        height,
        near_plane=geometry.near_plane,
        eps2d=geometry.eps2d,
        backgrounds=torch.full((viewmats.shape[0], 3), background, device=viewmats.device),
        render_mode="RGB+ED",
        covars=covars,
    )
    return images[..., :3], alphas, images[..., 3:]


def opacity_factors(gaussians: Gaussians, viewmats: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """What the published rasterizer multiplies opacities by, per camera.

    sqrt(det / (det + 1e-6) + 1e-6) of the projected covariance, 0 where det <= 1e-6. Only splats far below a pixel
    notice it.

    Args:
        gaussians: [B, N], quaternions taken as they are.
        viewmats: [C, 4, 4] world to camera.
        intrinsics: [C, 3, 3] in pixels.
        height: pixels.
        width: pixels.

    Returns:
        [B, C, N].
    """
    rotation = viewmats[:, None, :3, :3]  # [C, 1, 3, 3]
    points = gaussians.means[:, None] @ viewmats[:, :3, :3].mT + viewmats[:, None, :3, 3]  # [B, C, N, 3] camera axes
    z = points[..., 2].clamp_min(1e-3)  # nearer splats are culled anyway
    focal_x, focal_y = intrinsics[:, 0, 0, None], intrinsics[:, 1, 1, None]  # [C, 1]
    limit_x, limit_y = 1.3 * 0.5 * width / focal_x, 1.3 * 0.5 * height / focal_y
    x_slope = torch.minimum(torch.maximum(points[..., 0] / z, -limit_x), limit_x)
    y_slope = torch.minimum(torch.maximum(points[..., 1] / z, -limit_y), limit_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [focal_x / z, zero, -focal_x * x_slope / z, zero, focal_y / z, -focal_y * y_slope / z], dim=-1
    ).unflatten(-1, (2, 3))  # [B, C, N, 2, 3]
    projection = jacobian @ rotation
    projected = projection @ covariances(gaussians)[:, None] @ projection.mT  # [B, C, N, 2, 2]
    determinant = projected[..., 0, 0] * projected[..., 1, 1] - projected[..., 0, 1] ** 2
    clamped = determinant.clamp_min(MIN_DETERMINANT)
    factors = torch.sqrt(clamped / (clamped + 1e-6) + 1e-6)
    return torch.where(determinant > MIN_DETERMINANT, factors, torch.zeros_like(factors))


def coordinate_map(
    depth: Tensor, alpha: Tensor, cameras: Cameras, pixel_rule: PixelRule, background: float = 1.0
) -> Tensor:
    """World positions as an image in [0, 1] on the background: [..., 1, H, W] depth and alpha -> [..., 3, H, W]."""
    return (0.5 * unproject_depth(depth, *cameras, pixel_rule) + 0.5) * alpha + (1.0 - alpha) * background


def normal_map(normals: Tensor, alpha: Tensor, camera_to_world: Tensor, background: float = 1.0) -> Tensor:
    """Normals in camera axes as an image of world normals in [0, 1] on the background: [..., 3, H, W] -> same."""
    world = rotate_map(camera_to_world[..., :3, :3], normals)
    return (0.5 * world + 0.5) * alpha + (1.0 - alpha) * background


def surface_normals(positions: Tensor) -> Tensor:
    """World normals of a surface given by its points, by central differences between neighbouring pixels.

    [..., 3, H, W] world positions -> [..., 3, H, W] of unit length, towards the camera; zero where points coincide.
    """
    flat = F.pad(positions.flatten(0, -4), (1, 1, 1, 1), mode="replicate")  # [N, 3, H + 2, W + 2]
    right = flat[..., 1:-1, 2:] - flat[..., 1:-1, :-2]
    down = flat[..., 2:, 1:-1] - flat[..., :-2, 1:-1]
    return F.normalize(torch.linalg.cross(down, right, dim=-3), dim=-3).reshape(positions.shape)
