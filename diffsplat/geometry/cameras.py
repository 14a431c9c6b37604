"""Cameras: poses, intrinsics, pixel rays. The page of conventions.

World: right-handed, OpenGL style: x right, y up, z towards the viewer; objects lie inside about [-1, 1]^3.
Camera axes: OpenCV (x right, y down, z forward). `camera_to_world` matrices mix the two on purpose, as published.
Orbit: elevation is positive above the horizon, azimuth 0 looks from +z and grows towards +x, degrees.
Intrinsics: (fx, fy, cx, cy) divided by the image size, so that they fit every resolution.
Depth is z-depth in camera axes, not distance along the ray.

Axes in shape comments: V views, H W pixels, h w latent pixels; leading "..." are free.

Two pixel rules exist, and a bundle says which one its weights were trained with (`SplatGeometry`):

    pixel_centers   u = (j + 0.5) / W for rays and for unprojection
    legacy          u = j / (W - 1) for unprojection, and half an image more than that for Pluecker rays, so that their
                    directions run from 0 to 1/f instead of -0.5/f to 0.5/f. The published weights depend on both.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffsplat_client.poses import FOCAL
from torch import Tensor

from diffsplat.backbones import PixelRule, SplatGeometry

DIFFSPLAT_FOCAL = FOCAL  # focal length / image size


class Cameras(NamedTuple):
    """Cameras of any leading shape, usually [B, V] or [V]."""

    camera_to_world: Tensor  # [..., 4, 4] OpenCV camera axes, OpenGL world
    intrinsics: Tensor  # [..., 4] fx, fy, cx, cy divided by the image size


def orbit_camera_to_world(
    elevation_deg: Tensor | float, azimuth_deg: Tensor | float, distance: Tensor | float
) -> Tensor:
    """Poses that look at the origin from an orbit, upright; also defined straight above and below.

    Args:
        elevation_deg: positive = above the horizon.
        azimuth_deg: 0 looks from +z, 90 from +x.
        distance: camera to origin, world units. The three broadcast against each other.

    Returns:
        [..., 4, 4] float32 camera-to-world, OpenCV camera axes.
    """
    tensors = [value for value in (elevation_deg, azimuth_deg, distance) if isinstance(value, Tensor)]
    device = tensors[0].device if tensors else None
    given = (elevation_deg, azimuth_deg, distance)
    elevation, azimuth, radius = torch.broadcast_tensors(
        *(torch.as_tensor(value, dtype=torch.float32, device=device) for value in given)
    )
    elevation, azimuth = torch.deg2rad(elevation), torch.deg2rad(azimuth)
    sin_e, cos_e, sin_a, cos_a = elevation.sin(), elevation.cos(), azimuth.sin(), azimuth.cos()
    right = torch.stack([cos_a, torch.zeros_like(cos_a), -sin_a], dim=-1)  # [..., 3]
    down = torch.stack([sin_e * sin_a, -cos_e, sin_e * cos_a], dim=-1)
    backward = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], dim=-1)  # from the origin to the camera
    return _pose(torch.stack([right, down, -backward], dim=-1), radius[..., None] * backward)


def look_at(position: Tensor, target: Tensor) -> Tensor:
    """Upright poses at `position` [..., 3] that look at `target` [..., 3] -> [..., 4, 4], OpenCV camera axes.

    Undefined for a line of sight along the world's y axis; `orbit_camera_to_world` is defined there.
    """
    position, target = torch.broadcast_tensors(position, target)
    forward = F.normalize(target - position, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=position.dtype, device=position.device).expand_as(forward)
    # dim is named: torch.cross without it would take the first axis of length 3, which may be the cameras
    right = F.normalize(torch.linalg.cross(forward, up, dim=-1), dim=-1)
    down = torch.linalg.cross(forward, right, dim=-1)
    return _pose(torch.stack([right, down, forward], dim=-1), position)


def _pose(rotation: Tensor, position: Tensor) -> Tensor:
    upper = torch.cat([rotation, position[..., None]], dim=-1)  # [..., 3, 4]
    lower = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=upper.dtype, device=upper.device).expand(*upper.shape[:-2], 1, 4)
    return torch.cat([upper, lower], dim=-2)


def orbit_cameras(elevation_deg: Tensor | float, azimuth_deg: Tensor | float, distance: Tensor | float) -> Cameras:
    """`orbit_camera_to_world` with the intrinsics that every DiffSplat model uses."""
    camera_to_world = orbit_camera_to_world(elevation_deg, azimuth_deg, distance)
    intrinsics = torch.tensor([DIFFSPLAT_FOCAL, DIFFSPLAT_FOCAL, 0.5, 0.5], device=camera_to_world.device)
    return Cameras(camera_to_world, intrinsics.expand(*camera_to_world.shape[:-2], 4))


def generated_view_cameras(elevation_deg: Tensor | float, distance: Tensor | float, views: int = 4) -> Cameras:
    """The views that a denoiser generates: evenly spaced azimuths from 0 on, one elevation.

    Elevation and distance may be numbers or tensors [...] (one per object); the result is [..., V].
    """
    elevation, radius = (
        value[..., None] if isinstance(value, Tensor) else value for value in (elevation_deg, distance)
    )
    device = next((value.device for value in (elevation, radius) if isinstance(value, Tensor)), None)
    return orbit_cameras(elevation, torch.arange(views, device=device) * (360.0 / views), radius)


def world_to_camera(camera_to_world: Tensor) -> Tensor:
    """Inverse of rigid poses [..., 4, 4], by transposition."""
    rotation = camera_to_world[..., :3, :3].mT
    return _pose(rotation, -(rotation @ camera_to_world[..., :3, 3:])[..., 0])


def pixel_intrinsics(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Matrices K [..., 3, 3] in pixels, pixel centres at +0.5, from normalised intrinsics [..., 4]."""
    size = torch.tensor([width, height, width, height], dtype=intrinsics.dtype, device=intrinsics.device)
    fx, fy, cx, cy = (intrinsics * size).unbind(-1)
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def _pixel_positions(size: int, pixel_rule: PixelRule, like: Tensor) -> Tensor:
    """[size] positions along one image side, as a fraction of it."""
    if pixel_rule == "pixel_centers":
        return (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) / size
    return torch.linspace(0.0, 1.0, size, dtype=like.dtype, device=like.device)


def _camera_directions(intrinsics: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """[..., 4], [W], [H] -> [..., 3, H, W] directions in camera axes with z = 1."""
    fx, fy, cx, cy = intrinsics[..., None, None].unbind(-3)  # each [..., 1, 1]
    x, y = torch.broadcast_tensors((u - cx) / fx, (v[:, None] - cy) / fy)
    return torch.stack([x, y, torch.ones_like(x)], dim=-3)


def plucker_rays(camera_to_world: Tensor, intrinsics: Tensor, height: int, width: int, pixel_rule: PixelRule) -> Tensor:
    """Pluecker coordinates of every pixel's ray in the world frame.

    Args:
        camera_to_world: [..., 4, 4].
        intrinsics: [..., 4], normalised.
        height: pixels.
        width: pixels.
        pixel_rule: see the head of this file; `legacy` is off by half an image, as the published weights expect.

    Returns:
        [..., 6, H, W]: moment (origin x direction), then unit direction.
    """
    shift = 0.5 if pixel_rule == "legacy" else 0.0
    u = _pixel_positions(width, pixel_rule, intrinsics) + shift
    v = _pixel_positions(height, pixel_rule, intrinsics) + shift
    directions = _camera_directions(intrinsics, u, v).flatten(-2)  # [..., 3, HW]
    with torch.autocast(directions.device.type, enabled=False):  # geometry never in half precision
        directions = F.normalize(camera_to_world[..., :3, :3] @ directions, dim=-2)
    origins = camera_to_world[..., :3, 3:].expand_as(directions)
    moments = torch.linalg.cross(origins, directions, dim=-2)
    return torch.cat([moments, directions], dim=-2).unflatten(-1, (height, width))


def latent_plucker(cameras: Cameras, geometry: SplatGeometry, latent_size: int) -> Tensor:
    """Pluecker maps as denoisers get them -> [..., 6, h, w] for cameras [...].

    Made at the size of the splat grid, then resized bilinearly without antialiasing, as published.
    """
    size = geometry.grid_size
    rays = plucker_rays(*cameras, size, size, geometry.ray_pixel_rule)
    flat = rays.reshape(-1, 6, size, size)
    small = F.interpolate(flat, size=(latent_size, latent_size), mode="bilinear", align_corners=False)
    return small.reshape(*rays.shape[:-2], latent_size, latent_size)


def unproject_depth(depth: Tensor, camera_to_world: Tensor, intrinsics: Tensor, pixel_rule: PixelRule) -> Tensor:
    """World positions of pixels: z-depth [..., 1, H, W], poses [..., 4, 4], intrinsics [..., 4] -> [..., 3, H, W]."""
    height, width = depth.shape[-2:]
    u = _pixel_positions(width, pixel_rule, intrinsics)
    v = _pixel_positions(height, pixel_rule, intrinsics)
    points = (depth * _camera_directions(intrinsics, u, v)).flatten(-2)  # [..., 3, HW]
    points = camera_to_world[..., :3, :3] @ points + camera_to_world[..., :3, 3:]
    return points.unflatten(-1, (height, width))


def rotate_map(rotation: Tensor, vectors: Tensor) -> Tensor:
    """Rotate an image of vectors: [..., 3, 3] and [..., 3, H, W] -> [..., 3, H, W]."""
    return (rotation @ vectors.flatten(-2)).unflatten(-1, vectors.shape[-2:])


def relative_to_view(camera_to_world: Tensor, view: int, distance: float | None = None) -> Tensor:
    """Move the world so that one view has no rotation.

    Args:
        camera_to_world: [..., V, 4, 4], camera axes of either convention.
        view: index of the reference view.
        distance: where given, all positions are first scaled so that the reference view is this far from the origin,
            and it ends at (0, 0, distance); otherwise nothing is scaled and it ends at the origin.

    Returns:
        [..., V, 4, 4].
    """
    goal = torch.eye(4, dtype=camera_to_world.dtype, device=camera_to_world.device)
    if distance is not None:
        scale = distance / camera_to_world[..., view, :3, 3].norm(dim=-1)  # [...]
        positions = camera_to_world[..., :3, 3] * scale[..., None, None]
        camera_to_world = _pose(camera_to_world[..., :3, :3], positions)
        goal[2, 3] = distance
    move = goal @ world_to_camera(camera_to_world[..., view, :, :])  # [..., 4, 4]
    return move[..., None, :, :] @ camera_to_world
