"""Splats as the nodes of a scene place them."""

import dataclasses

import numpy as np

from diffsplat_client.cloud import SplatCloud


def placed(cloud: SplatCloud, matrix: np.ndarray, what: str) -> SplatCloud:
    """The cloud moved by a matrix [4, 4] of column vectors.

    Raises:
        ValueError: naming `what` places it: the matrix is not a rotation, a translation and one scale for all axes.
    """
    if np.array_equal(matrix, np.eye(4)):
        return cloud
    linear = matrix[:3, :3]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scale = np.cbrt(np.linalg.det(linear))
        rotation = linear / scale
        if not scale > 0 or not np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3:
            raise ValueError(f"{what} stretches or mirrors the splats: it may turn, move and scale them evenly")
        w, x, y, z = _quaternion(rotation)
        a, b, c, d = cloud.quats_wxyz.T
        quats = [w * a - x * b - y * c - z * d, w * b + x * a + y * d - z * c]
        quats += [w * c - x * d + y * a + z * b, w * d + x * c - y * b + z * a]
        return dataclasses.replace(
            cloud,
            positions=cloud.positions @ linear.T + matrix[:3, 3],
            scales=cloud.scales * scale,
            quats_wxyz=np.stack(quats, axis=1),
        )


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    """A rotation matrix as a unit quaternion (w, x, y, z): the eigenvector of Bar-Itzhack's symmetric matrix."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    k = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, yx + xy, zx + xz],
            [xz - zx, yx + xy, yy - xx - zz, zy + yz],
            [yx - xy, zx + xz, zy + yz, zz - xx - yy],
        ]
    )
    return np.linalg.eigh(k)[1][:, -1]
