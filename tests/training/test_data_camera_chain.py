"""Record cameras to relative orbit cameras: signs, order, scale, and what is kept."""

import numpy as np
import pytest
import torch

from training.data.camera_chain import relative_orbit_cameras, y_up_to_z_up, z_up_to_y_up
from training.data.procedural.synthetic import layout_cameras, synthetic_object
from training.data.views import GOBJAVERSE_LAYOUT


def camera_zup(elevation_deg: float, azimuth_deg: float, distance: float, roll_deg: float = 0.0) -> np.ndarray:
    """A camera written from first principles in the z-up world; azimuth 0 stands at -y, 90 at +x."""
    e, a, roll = np.radians([elevation_deg, azimuth_deg, roll_deg])
    outward = np.array([np.cos(e) * np.sin(a), -np.cos(e) * np.cos(a), np.sin(e)])
    right = np.cross([0.0, 0.0, 1.0], outward)
    right /= np.linalg.norm(right)
    down = np.cross(-outward, right)  # x right, y down, z forward
    matrix = np.eye(4)
    matrix[:3, 0] = np.cos(roll) * right + np.sin(roll) * down
    matrix[:3, 1] = np.cos(roll) * down - np.sin(roll) * right
    matrix[:3, 2] = -outward
    matrix[:3, 3] = distance * outward
    return matrix


def test_elevation_azimuth_and_radius():
    """A camera 20 degrees above stays above; azimuths count from view 0 towards +x; view 0 stands at 1.4."""
    recorded = np.stack([camera_zup(20.0, 77.0 + turn, 1.6) for turn in (0, 90, 180, 270)])
    cameras = relative_orbit_cameras(recorded)
    torch.testing.assert_close(cameras.elevations_deg, torch.full((4,), 20.0))
    torch.testing.assert_close(cameras.azimuths_deg, torch.tensor([0.0, 90.0, 180.0, 270.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(cameras.distances, torch.full((4,), 1.4))
    assert cameras.world_scale == pytest.approx(1.4 / 1.6)

    positions = cameras.camera_to_world[:, :3, 3]
    height, level = 1.4 * np.sin(np.radians(20)), 1.4 * np.cos(np.radians(20))
    expected = [[0, height, level], [level, height, 0], [0, height, -level], [-level, height, 0]]
    torch.testing.assert_close(positions, torch.tensor(expected).float(), atol=1e-6, rtol=0)


def test_cameras_are_opencv_and_look_at_the_origin():
    recorded = np.stack([camera_zup(e, a, d) for e, a, d in ((5, 10, 1.2), (-4, 200, 1.5), (60, 300, 1.3))])
    poses = relative_orbit_cameras(recorded).camera_to_world
    rotations, positions = poses[:, :3, :3], poses[:, :3, 3]
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).repeat(3, 1, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(3))
    forward = -positions / positions.norm(dim=1, keepdim=True)
    torch.testing.assert_close(rotations[:, :, 2], forward, atol=1e-6, rtol=0)
    assert (rotations[:, 1, 1] < 0).all(), "camera y must point down in a y-up world"
    torch.testing.assert_close(rotations[:, 1, 0], torch.zeros(3), atol=1e-6, rtol=0)


def test_distance_ratios_and_each_elevation_are_kept():
    recorded = np.stack([camera_zup(10, 0, 1.25), camera_zup(-3, 40, 1.5)])
    cameras = relative_orbit_cameras(recorded)
    torch.testing.assert_close(cameras.distances, torch.tensor([1.4, 1.4 * 1.5 / 1.25]))
    torch.testing.assert_close(cameras.elevations_deg, torch.tensor([10.0, -3.0]))


def test_roll_is_discarded_and_normals_follow_view_0():
    """Normals turn with view 0's whole rotation, so a rolled reference camera still sees what its image shows."""
    straight, rolled = camera_zup(15, 120, 1.4), camera_zup(15, 120, 1.4, roll_deg=30)
    torch.testing.assert_close(
        relative_orbit_cameras(straight[None]).camera_to_world, relative_orbit_cameras(rolled[None]).camera_to_world
    )
    for recorded in (straight, rolled):
        cameras = relative_orbit_cameras(recorded[None])
        in_camera = torch.tensor([0.2, -0.5, -0.8])
        recorded_normal = torch.from_numpy(z_up_to_y_up(recorded)[:3, :3]).float() @ in_camera
        rebuilt_normal = cameras.camera_to_world[0, :3, :3] @ in_camera
        torch.testing.assert_close(cameras.normal_rotation @ recorded_normal, rebuilt_normal, atol=1e-6, rtol=0)


def test_the_generators_rig_passes_through_unchanged():
    """Cameras made by the generator, poles included, come back as they were up to azimuth of view 0 and scale."""
    recorded = layout_cameras(GOBJAVERSE_LAYOUT, 1.4, np.random.default_rng(0))
    cameras = relative_orbit_cameras(recorded)
    torch.testing.assert_close(
        cameras.camera_to_world, torch.from_numpy(z_up_to_y_up(recorded)).float(), atol=2e-6, rtol=0
    )
    assert cameras.elevations_deg[25] > 89.9
    assert cameras.elevations_deg[26] < -89.9
    np.testing.assert_array_equal(recorded[24], recorded[0])
    np.testing.assert_array_equal(recorded[39], recorded[27])
    assert torch.all((cameras.elevations_deg[:24] >= 5 - 1e-3) & (cameras.elevations_deg[:24] <= 30 + 1e-3))
    assert torch.all(cameras.elevations_deg[27:39].abs() <= 5 + 1e-3)


def test_a_camera_at_a_pole_keeps_its_turn():
    """Straight above, the azimuth is in the camera's right axis; rounding of the position must not decide it."""
    for noise in (1e-9, -1e-9):
        top = np.eye(4)
        turn = np.radians(130.0)
        top[:3, 0] = np.cos(turn), np.sin(turn), 0.0
        top[:3, 1] = np.sin(turn), -np.cos(turn), 0.0
        top[:3, 2] = 0.0, 0.0, -1.0
        top[:3, 3] = noise, noise, 1.4
        cameras = relative_orbit_cameras(np.stack([camera_zup(10, 30, 1.4), top]))
        torch.testing.assert_close(cameras.azimuths_deg[1], torch.tensor(100.0))
        torch.testing.assert_close(cameras.elevations_deg[1], torch.tensor(90.0))


def test_world_changes_are_inverse():
    cameras = synthetic_object(0, 0).camera_to_world_zup
    np.testing.assert_array_equal(y_up_to_z_up(z_up_to_y_up(cameras)), cameras)


def test_a_camera_at_the_origin_is_refused():
    with pytest.raises(ValueError, match="camera 1 is at the world origin"):
        relative_orbit_cameras(np.stack([camera_zup(0, 0, 1.4), np.eye(4)]))
    broken = camera_zup(0, 0, 1.4)[None]
    broken[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        relative_orbit_cameras(broken)
