"""Cameras: what the conventions promise, beyond the numbers of the reference files."""

import pytest
import torch

from diffsplat.backbones import PICO, SD15
from diffsplat.geometry.cameras import (
    DIFFSPLAT_FOCAL,
    generated_view_cameras,
    latent_plucker,
    look_at,
    orbit_camera_to_world,
    orbit_cameras,
    pixel_intrinsics,
    plucker_rays,
    unproject_depth,
    world_to_camera,
)


def test_orbit_signs():
    """Positive elevation is above; azimuth 0 stands at +z, 90 at +x; OpenCV axes: x right, y down, z forward."""
    front, right = orbit_camera_to_world(30.0, torch.tensor([0.0, 90.0]), 2.0)
    torch.testing.assert_close(front[:3, 3], torch.tensor([0.0, 1.0, 3**0.5]))
    torch.testing.assert_close(right[:3, 3], torch.tensor([3**0.5, 1.0, 0.0]))
    torch.testing.assert_close(front[:3, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert front[1, 1] < 0 and front[2, 2] < 0


def test_orbit_poses_are_rigid_even_at_the_poles():
    elevations = torch.tensor([-90.0, -30.0, 0.0, 89.999, 90.0])[:, None]
    poses = orbit_camera_to_world(elevations, torch.arange(0, 360, 45.0), 1.4)
    assert poses.shape == (5, 8, 4, 4)
    rotation = poses[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand_as(rotation))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5, 8))
    torch.testing.assert_close(world_to_camera(poses) @ poses, torch.eye(4).expand_as(poses))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_look_at_does_not_mistake_three_cameras_for_an_axis(count):
    """The reference takes its cross products over the cameras when there are exactly three of them."""
    poses = orbit_camera_to_world(20.0, torch.arange(count) * 50.0, 1.4)
    torch.testing.assert_close(look_at(poses[:, :3, 3], torch.zeros(3)), poses)


def test_every_object_may_have_its_own_elevation_and_distance():
    elevation, distance = torch.tensor([10.0, -20.0]), torch.tensor([1.4, 2.0])
    both = generated_view_cameras(elevation, distance)
    for b in range(2):
        single = generated_view_cameras(elevation[b], float(distance[b]))
        torch.testing.assert_close(both.camera_to_world[b], single.camera_to_world)
        torch.testing.assert_close(both.intrinsics[b], single.intrinsics)
    one = latent_plucker(generated_view_cameras(elevation[1], 2.0), PICO.geometry, PICO.latent_size)
    torch.testing.assert_close(latent_plucker(both, PICO.geometry, PICO.latent_size)[1], one)


def test_pixel_centre_rules_agree_with_the_projection():
    """A pixel unprojected by the new rule lies on that pixel's ray and is projected back to j + 0.5, i + 0.5."""
    height, width = 5, 7
    camera_to_world, intrinsics = orbit_cameras(25.0, 130.0, 1.7)
    depth = torch.rand(1, height, width, generator=torch.Generator().manual_seed(0)) + 0.5
    points = unproject_depth(depth, camera_to_world, intrinsics, "pixel_centers").flatten(1)  # [3, HW]

    view = world_to_camera(camera_to_world)
    seen = pixel_intrinsics(intrinsics, height, width) @ (view[:3, :3] @ points + view[:3, 3:])
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    torch.testing.assert_close(seen[:2] / seen[2], torch.stack([columns, rows]).flatten(1))
    torch.testing.assert_close(seen[2], depth.flatten())

    moment, direction = plucker_rays(camera_to_world, intrinsics, height, width, "pixel_centers").flatten(1).split(3)
    torch.testing.assert_close(torch.linalg.cross(points, direction, dim=0), moment)
    torch.testing.assert_close(direction.norm(dim=0), torch.ones(height * width))


def test_legacy_rays_start_on_the_optical_axis():
    """The shift by half an image that the published weights expect."""
    camera_to_world, intrinsics = orbit_cameras(0.0, 0.0, 1.4)
    direction = plucker_rays(camera_to_world, intrinsics, 9, 9, SD15.geometry.ray_pixel_rule)[3:]
    torch.testing.assert_close(direction[:, 0, 0], torch.tensor([0.0, 0.0, -1.0]))
    corner = torch.tensor([1 / DIFFSPLAT_FOCAL, -1 / DIFFSPLAT_FOCAL, -1.0])
    torch.testing.assert_close(direction[:, -1, -1], corner / corner.norm())
