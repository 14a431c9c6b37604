"""From the cameras of a record to those that networks and renderer use.

A record holds OpenCV-axes camera-to-world matrices in a z-up world, at any distance and azimuth. The result is an
orbit around the origin in the y-up (OpenGL) world, OpenCV camera axes, azimuth counted from view 0, and the whole
world scaled so that view 0 is at radius 1.4. As in the published code, elevation is kept, roll and off-centre aim are
not.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffsplat.geometry.cameras import orbit_camera_to_world

REFERENCE_RADIUS = 1.4
POLE_LEVEL = 1e-6  # horizontal share of the distance below which a camera counts as being at a pole
Y_UP_FROM_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])  # (x, y, z) -> (x, z, -y)


class RelativeOrbit(NamedTuple):
    """Cameras of one object's views, relative to view 0."""

    camera_to_world: Tensor  # [V, 4, 4] float32, OpenCV camera axes, y-up world, scaled
    elevations_deg: Tensor  # [V] positive = above
    azimuths_deg: Tensor  # [V] in [0, 360), 0 = view 0
    distances: Tensor  # [V] scaled: view 0 is at REFERENCE_RADIUS
    world_scale: float  # factor for depths and positions of the record
    normal_rotation: Tensor  # [3, 3] y-up world of the record -> world of camera_to_world


def z_up_to_y_up(camera_to_world_zup: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same cameras, camera axes kept, in the y-up world. [..., 4, 4] -> [..., 4, 4]."""
    moved = camera_to_world_zup.copy()
    moved[..., :3, :] = Y_UP_FROM_Z_UP @ camera_to_world_zup[..., :3, :]
    return moved


def y_up_to_z_up(camera_to_world: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `z_up_to_y_up`."""
    moved = camera_to_world.copy()
    moved[..., :3, :] = Y_UP_FROM_Z_UP.T @ camera_to_world[..., :3, :]
    return moved


def relative_orbit_cameras(camera_to_world_zup: NDArray[np.float64]) -> RelativeOrbit:
    """Relative orbit cameras of one object.

    Args:
        camera_to_world_zup: [V, 4, 4] as decoded from a record; row 0 is the reference view.

    Raises:
        ValueError: a camera is at the world origin, or a value is not finite.
    """
    if not np.isfinite(camera_to_world_zup).all():
        raise ValueError("camera_to_world_zup holds values that are not finite")
    recorded = z_up_to_y_up(camera_to_world_zup)  # [V, 4, 4]
    positions = recorded[:, :3, 3]  # [V, 3]
    distances = np.linalg.norm(positions, axis=1)
    if distances.min() < 1e-6:
        raise ValueError(f"camera {int(distances.argmin())} is at the world origin; its distance must be positive")
    level = np.hypot(positions[:, 0], positions[:, 2])
    elevations = np.degrees(np.arctan2(positions[:, 1], level))
    # Straight above or below, the azimuth of the position is mere rounding; the camera's right axis gives it instead.
    right = recorded[:, :3, 0]
    at_pole = level < POLE_LEVEL * distances
    azimuths = np.degrees(
        np.where(at_pole, np.arctan2(-right[:, 2], right[:, 0]), np.arctan2(positions[:, 0], positions[:, 2]))
    )
    relative = np.mod(azimuths - azimuths[0], 360.0)
    scale = REFERENCE_RADIUS / float(distances[0])

    elevations_deg, azimuths_deg, radii = (
        torch.from_numpy(values).float() for values in (elevations, relative, distances * scale)
    )
    rebuilt = orbit_camera_to_world(elevations_deg, azimuths_deg, radii)  # [V, 4, 4]
    # The flip of the camera's y and z columns to OpenGL axes cancels in the product, so OpenCV axes serve.
    rotation = rebuilt[0, :3, :3].double() @ torch.from_numpy(recorded[0, :3, :3]).T
    return RelativeOrbit(rebuilt, elevations_deg, azimuths_deg, radii, scale, rotation.float())
