"""What is wrong with an object: cameras, surfaces seen by two of them, normals against depths.

All is computed in the y-up world of the record, with the recorded cameras. Letters: V views, H = W pixels.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from training.data.camera_chain import RelativeOrbit, relative_orbit_cameras, z_up_to_y_up
from training.data.record import BrokenRecord, PackedViews, RawViews, unpack_views

MAX_AIM_DEG = 3.0  # samples place cameras as if they looked at the origin
_OPAQUE = 254.5 / 255.0
_OCCLUDED = 1.02  # a point is hidden from a view if it lies so much farther than what the view sees there
_MIN_ANGLE_DEG, _MAX_ANGLE_DEG = 5.0, 50.0  # between views that are compared


class ObjectCheck(NamedTuple):
    """Measurements of one object; NaN where it has no depths."""

    aim_deg: float  # largest angle between an optical axis and the direction to the origin
    orbit_deg: float  # largest rotation between a recorded camera and the one that samples use
    reprojection_px: float  # median distance between a point of one view and the surface another view sees there
    lost_share: float  # share of points that another view should see but shows background at
    normal_deg: float  # median angle between normals and the surface of the depths
    cut_views: int  # views whose object reaches the image's border
    empty_views: int


def check_aim(camera_to_world_zup: NDArray[np.float64]) -> None:
    """Refuse cameras [V, 4, 4] that do not look at the object.

    Raises:
        BrokenRecord: names the view's row and the angle.
    """
    angles = _aim_angles(z_up_to_y_up(camera_to_world_zup))
    worst = int(angles.argmax())
    if not angles[worst] <= MAX_AIM_DEG:
        raise BrokenRecord(
            f"the camera of view {worst} of the sample looks {angles[worst]:.1f} degrees past the object's centre, the "
            f"origin; at most {MAX_AIM_DEG:g}"
        )


def check_object(packed: PackedViews) -> ObjectCheck:
    """Measure an object by some of its views.

    Raises:
        ValueError: a camera stands at the origin.
    """
    views = unpack_views(packed)
    cameras = z_up_to_y_up(views.camera_to_world_zup)
    orbit = relative_orbit_cameras(views.camera_to_world_zup)
    alphas = views.rgba[..., 3]
    border = np.concatenate([alphas[:, [0, -1], :], alphas[:, :, [0, -1]].swapaxes(1, 2)], axis=1)  # [V, 4, H]
    nan = math.nan
    reprojection, lost, normal = nan, nan, nan
    if views.normals.shape[-1]:
        points = _surface_points(views, cameras)
        results = [_reproject(points, alphas, cameras, *pair) for pair in _pairs(cameras)]
        compared = [result for result in results if result is not None]
        if compared:
            reprojection = float(np.median(np.concatenate([errors for errors, _ in compared])))
            lost = float(np.mean([share for _, share in compared]))
        normal = _normal_error(views, points, cameras)
    return ObjectCheck(
        aim_deg=float(_aim_angles(cameras).max()),
        orbit_deg=_orbit_error(cameras, orbit),
        reprojection_px=reprojection,
        lost_share=lost,
        normal_deg=normal,
        cut_views=int((border > 0.5).any(axis=(1, 2)).sum()),
        empty_views=int((alphas.max(axis=(1, 2)) < 0.5).sum()),
    )


def _aim_angles(cameras: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angles in degrees between optical axes and the direction to the origin, [V]."""
    positions, axes = cameras[:, :3, 3], cameras[:, :3, 2]
    lengths = np.linalg.norm(positions, axis=1) * np.linalg.norm(axes, axis=1)
    cosines = -(positions * axes).sum(axis=1) / np.maximum(lengths, 1e-12)
    return np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))


def _orbit_error(cameras: NDArray[np.float64], orbit: RelativeOrbit) -> float:
    """Largest angle between recorded cameras and the orbit's, after the orbit's turn of the world."""
    rebuilt = orbit.camera_to_world.double().numpy()[:, :3, :3]
    x, _, z = cameras[0, :3, 3]
    angle = -math.atan2(x, z) if math.hypot(x, z) > 1e-6 else 0.0
    turn = np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    level = np.hypot(cameras[:, 0, 3], cameras[:, 2, 3]) > 1e-3 * np.linalg.norm(cameras[:, :3, 3], axis=1)
    between = np.einsum("vji,vjk->vik", rebuilt, turn @ cameras[:, :3, :3])[
        level
    ]  # poles have their azimuth by the axes
    if not len(between):
        return 0.0
    cosines = 0.5 * (np.trace(between, axis1=1, axis2=2) - 1.0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).max())


def _pairs(cameras: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Every view with the nearest other one from which the surface looks different."""
    directions = cameras[:, :3, 3] / np.linalg.norm(cameras[:, :3, 3], axis=1, keepdims=True)
    angles = np.degrees(np.arccos(np.clip(directions @ directions.T, -1.0, 1.0)))
    angles[angles < _MIN_ANGLE_DEG] = np.inf
    nearest = angles.argmin(axis=1)
    return [(first, int(second)) for first, second in enumerate(nearest) if angles[first, second] <= _MAX_ANGLE_DEG]


def _surface_points(views: RawViews, cameras: NDArray[np.float64]) -> NDArray[np.float32]:
    """World positions of all pixels, [V, H, W, 3]."""
    side = views.depths.shape[-1]
    grid = ((np.arange(side) + 0.5) / side - 0.5) / DIFFSPLAT_FOCAL
    rays = np.stack([*np.meshgrid(grid, grid), np.ones((side, side))], axis=-1)  # [H, W, 3]
    local = rays * views.depths[..., None]
    return (np.einsum("vij,vhwj->vhwi", cameras[:, :3, :3], local) + cameras[:, None, None, :3, 3]).astype(np.float32)


def _reproject(
    points: NDArray[np.float32], alphas: NDArray[np.float32], cameras: NDArray[np.float64], first: int, second: int
) -> tuple[NDArray[np.float64], float] | None:
    """Errors in pixels of the first view's points in the second, and the share of them that it does not show at all."""
    side = alphas.shape[-1]
    own = points[first][alphas[first] >= _OPAQUE]  # [N, 3]
    local = (own - cameras[second, :3, 3]) @ cameras[second, :3, :3]
    ahead = local[:, 2] > 1e-6
    own, local = own[ahead], local[ahead]
    where = (local[:, :2] / local[:, 2:] * DIFFSPLAT_FOCAL + 0.5) * side - 0.5  # [N, 2] pixel centres at integers
    inside = ((where >= 0) & (where <= side - 1)).all(axis=1)
    own, local, where = own[inside], local[inside], where[inside].astype(np.float32)
    if len(own) < 16:
        return None

    def seen(maps: np.ndarray) -> np.ndarray:
        return cv2.remap(maps, where[:, None, 0], where[:, None, 1], cv2.INTER_LINEAR)[:, 0]

    opaque = seen(alphas[second])
    shown = opaque >= _OPAQUE
    depths = (seen(points[second]) - cameras[second, :3, 3]) @ cameras[second, :3, 2]
    visible = shown & (local[:, 2] <= _OCCLUDED * depths)
    distances = np.linalg.norm(seen(points[second]) - own, axis=1) * DIFFSPLAT_FOCAL * side / local[:, 2]
    lost = float((opaque < 0.5 / 255.0).mean())
    return (distances[visible], lost) if visible.sum() >= 16 else None


def _normal_error(views: RawViews, points: NDArray[np.float32], cameras: NDArray[np.float64]) -> float:
    """Median angle in degrees between normals and cross products of neighbouring points."""
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    made = np.cross(down, across)  # towards the camera: image axes point right and down
    size = np.linalg.norm(made, axis=-1)
    alphas = views.rgba[..., 3]
    solid = alphas >= _OPAQUE
    whole = solid[:, 1:-1, 2:] & solid[:, 1:-1, :-2] & solid[:, 2:, 1:-1] & solid[:, :-2, 1:-1] & (size > 1e-12)
    if not whole.any():
        return math.nan
    recorded = views.normals[:, 1:-1, 1:-1][whole]
    cosines = (made[whole] / size[whole][:, None] * recorded).sum(axis=-1)
    return float(np.degrees(np.median(np.arccos(np.clip(cosines, -1.0, 1.0)))))
