"""Camera poses for `GenerationRequest.frame_poses`: rows of (elevation_deg, azimuth_deg, distance, splat_scale)."""

import numpy as np

from diffsplat_client.output_options import ELEVATION_LIMITS

FOCAL = 1422.222 / 1024  # focal length / image side of every camera of DiffSplat: 39.6 degrees field of view
DEFAULT_ELEVATION_DEG = 10.0  # of every bundle made for text
DEFAULT_DISTANCE = 1.4
POLE_LEVEL = 1e-3  # horizontal share of the distance below which a camera counts as straight above or below
OWN_ELEVATION = float("nan")  # means: the elevation of the generated views, which may not be known yet


def four_views(elevation_deg: float = DEFAULT_ELEVATION_DEG, distance: float = DEFAULT_DISTANCE) -> np.ndarray:
    """The four generated views, at azimuth 0, 90, 180, 270; float32 [4, 4]."""
    return _orbit(np.arange(4) * 90.0, elevation_deg, distance)


def turntable(
    frames: int = 48,
    elevation_deg: float = DEFAULT_ELEVATION_DEG,
    distance: float = DEFAULT_DISTANCE,
    grow: bool = False,
) -> np.ndarray:
    """An orbit around the object, float32 [F, 4].

    Args:
        frames: number of frames; the last is one step before the first, so that the film loops.
        elevation_deg: above the horizon.
        distance: of the camera from the object, world units.
        grow: make two turns; during the first the splats grow from nothing to full size.
    """
    if frames < 1:
        raise ValueError(f"frames = {frames}: must be at least 1")
    turns = 2 if grow else 1
    poses = _orbit(np.arange(frames) * (360.0 * turns / frames), elevation_deg, distance)
    if grow:
        poses[:, 3] = np.minimum(poses[:, 1] / 360.0, 1.0)
    return poses


def poses_of(camera_to_world: np.ndarray) -> np.ndarray:
    """Poses at the positions of cameras [V, 4, 4], float32 [V, 4].

    They give the same views if the cameras look at the origin and are upright. Elevations are clipped to the range
    that frames allow.
    """
    cameras = np.asarray(camera_to_world, np.float64)
    right, position = cameras[:, :3, 0], cameras[:, :3, 3]
    distance, level = np.linalg.norm(position, axis=1), np.hypot(position[:, 0], position[:, 2])
    at_pole = level < POLE_LEVEL * distance  # where the position has no azimuth; the camera's right axis has
    poses = np.ones((len(cameras), 4), np.float32)
    poses[:, 0] = np.clip(np.degrees(np.arctan2(position[:, 1], level)), *ELEVATION_LIMITS)
    poses[:, 1] = np.degrees(
        np.where(at_pole, np.arctan2(-right[:, 2], right[:, 0]), np.arctan2(position[:, 0], position[:, 2]))
    )
    poses[:, 2] = distance
    return poses


def _orbit(azimuth_deg: np.ndarray, elevation_deg: float, distance: float) -> np.ndarray:
    poses = np.ones((len(azimuth_deg), 4), np.float32)
    poses[:, 0], poses[:, 1], poses[:, 2] = elevation_deg, azimuth_deg, distance
    return poses
