"""Analytic ray caster: placed primitives and cameras in, `RawViews` out.

The light is fixed in the world: ambient plus half-Lambert from one direction, without specular reflection or shadows,
so that every face of a shape can be told apart and no face is black. Colour and alpha are means over a grid of
sub-pixel rays; normal and depth belong to the ray through the pixel centre, or, where only other rays of the pixel hit,
to their mean.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from training.data.camera_chain import Y_UP_FROM_Z_UP
from training.data.procedural.jit import compiled
from training.data.procedural.shapes import MISS, PLAIN, Primitive, hit_unit, painted_second
from training.data.record import RawViews

AMBIENT = 0.45
LIGHT_YUP = np.array([-0.6, 0.7, 0.4])  # towards the light: left, up, front of a camera at azimuth 0
SAMPLES_PER_SIDE = 3  # odd, so that one ray goes through the pixel centre


def render_views(
    primitives: Sequence[Primitive], camera_to_world_zup: NDArray[np.float64], resolution: int
) -> RawViews:
    """Render primitives from the given cameras.

    Args:
        primitives: In the z-up world of the cameras.
        camera_to_world_zup: [V, 4, 4], OpenCV camera axes.
        resolution: Side of the square images in pixels, at least 1.

    Returns:
        Views with straight alpha; the background is zero everywhere.
    """
    if resolution < 1:
        raise ValueError(f"resolution = {resolution} must be at least 1")
    rows = np.stack([primitive.row() for primitive in primitives])  # [P, 28]
    light = Y_UP_FROM_Z_UP.T @ LIGHT_YUP
    count = len(camera_to_world_zup)
    rgba = np.zeros((count, resolution, resolution, 4), np.float32)
    normals = np.zeros((count, resolution, resolution, 3), np.float32)
    depths = np.zeros((count, resolution, resolution), np.float32)
    cameras = np.ascontiguousarray(camera_to_world_zup, np.float64)
    for view in range(count):
        _cast_view(rows, cameras[view], light / np.linalg.norm(light), rgba[view], normals[view], depths[view])
    normals_yup = normals @ Y_UP_FROM_Z_UP.T.astype(np.float32)
    return RawViews(rgba, normals_yup, depths, cameras)


@compiled
def _cast_view(
    rows: NDArray[np.float64],
    camera: NDArray[np.float64],
    light: NDArray[np.float64],
    rgba: NDArray[np.float32],
    normals: NDArray[np.float32],
    depths: NDArray[np.float32],
) -> None:
    """Fill one view: rgba [H, W, 4], z-up normals [H, W, 3] and depths [H, W] (all start at zero)."""
    side = rgba.shape[0]
    count = rows.shape[0]
    per_pixel = SAMPLES_PER_SIDE * SAMPLES_PER_SIDE
    centre_sample = per_pixel // 2
    pixel = 1.0 / (side * DIFFSPLAT_FOCAL)
    # The camera in each primitive's unit frame and the pixels that its box may cover, once per view.
    origins = np.empty((count, 3))
    columns = np.empty((count, 3, 3))
    boxes = np.empty((count, 4), np.int64)  # first and last column, first and last row
    for p in range(count):
        to_unit = rows[p, 4:13].reshape(3, 3)
        for i in range(3):
            total = 0.0
            for k in range(3):
                total += to_unit[i, k] * (camera[k, 3] - rows[p, 1 + k])
            origins[p, i] = total
            for j in range(3):
                total = 0.0
                for k in range(3):
                    total += to_unit[i, k] * camera[k, j]
                columns[p, i, j] = total
        _cover_box(rows[p], camera, pixel, side, boxes[p])

    in_row = np.empty(count, np.int64)
    in_pixel = np.empty(count, np.int64)
    for i in range(side):
        row_count = 0
        for p in range(count):
            if boxes[p, 2] <= i <= boxes[p, 3]:
                in_row[row_count] = p
                row_count += 1
        for j in range(side):
            pixel_count = 0
            for q in range(row_count):
                if boxes[in_row[q], 0] <= j <= boxes[in_row[q], 1]:
                    in_pixel[pixel_count] = in_row[q]
                    pixel_count += 1
            if pixel_count == 0:
                continue
            hits = 0
            red = green = blue = 0.0
            sx = sy = sz = sd = 0.0
            for sample in range(per_pixel):
                u = (j + (sample % SAMPLES_PER_SIDE + 0.5) / SAMPLES_PER_SIDE - 0.5 * side) * pixel
                v = (i + (sample // SAMPLES_PER_SIDE + 0.5) / SAMPLES_PER_SIDE - 0.5 * side) * pixel
                best = MISS
                owner = -1
                ax = ay = az = 0.0
                for q in range(pixel_count):
                    p = in_pixel[q]
                    dx = columns[p, 0, 0] * u + columns[p, 0, 1] * v + columns[p, 0, 2]
                    dy = columns[p, 1, 0] * u + columns[p, 1, 1] * v + columns[p, 1, 2]
                    dz = columns[p, 2, 0] * u + columns[p, 2, 1] * v + columns[p, 2, 2]
                    t, nx, ny, nz = hit_unit(
                        rows[p, 0], rows[p, 16], origins[p, 0], origins[p, 1], origins[p, 2], dx, dy, dz
                    )
                    if t < best:
                        best, owner, ax, ay, az = t, p, nx, ny, nz
                if owner < 0:
                    continue
                # Normals go back by the transpose of world -> unit.
                m = rows[owner]
                wx = m[4] * ax + m[7] * ay + m[10] * az
                wy = m[5] * ax + m[8] * ay + m[11] * az
                wz = m[6] * ax + m[9] * ay + m[12] * az
                norm = 1.0 / math.sqrt(wx * wx + wy * wy + wz * wz)
                wx *= norm
                wy *= norm
                wz *= norm
                lambert = 0.5 + 0.5 * (wx * light[0] + wy * light[1] + wz * light[2])
                shade = AMBIENT + (1.0 - AMBIENT) * lambert
                paint = 13
                if m[17] != PLAIN:
                    o, c = origins[owner], columns[owner]
                    x = o[0] + best * (c[0, 0] * u + c[0, 1] * v + c[0, 2])
                    y = o[1] + best * (c[1, 0] * u + c[1, 1] * v + c[1, 2])
                    z = o[2] + best * (c[2, 0] * u + c[2, 1] * v + c[2, 2])
                    if painted_second(m[17], m[18], m[24], m[27], x, y, z):
                        paint = 19
                hits += 1
                red += shade * m[paint]
                green += shade * m[paint + 1]
                blue += shade * m[paint + 2]
                sx += wx
                sy += wy
                sz += wz
                sd += best
                if sample == centre_sample:
                    normals[i, j, 0] = wx
                    normals[i, j, 1] = wy
                    normals[i, j, 2] = wz
                    depths[i, j] = best
            if hits == 0:
                continue
            rgba[i, j, 0] = red / hits
            rgba[i, j, 1] = green / hits
            rgba[i, j, 2] = blue / hits
            rgba[i, j, 3] = hits / per_pixel
            if depths[i, j] == 0.0:  # the centre ray misses: an edge pixel
                norm = math.sqrt(sx * sx + sy * sy + sz * sz)
                if norm > 0.0:
                    normals[i, j, 0] = sx / norm
                    normals[i, j, 1] = sy / norm
                    normals[i, j, 2] = sz / norm
                depths[i, j] = sd / hits


@compiled
def _cover_box(
    row: NDArray[np.float64], camera: NDArray[np.float64], pixel: float, side: int, box: NDArray[np.int64]
) -> None:
    """Columns and rows of pixels that can see the primitive: its box's corners, projected, and one pixel around.

    The box must lie before the camera, as everything in [-0.5, 0.5]^3 does at the distances of the layouts; where it
    does not, every pixel is taken.
    """
    to_unit = row[4:13].copy().reshape(3, 3)
    from_unit = np.linalg.inv(to_unit)
    low_u = low_v = MISS
    high_u = high_v = -MISS
    for corner in range(8):
        x = row[22 + 3 * (corner & 1)]
        y = row[23 + 3 * ((corner >> 1) & 1)]
        z = row[24 + 3 * ((corner >> 2) & 1)]
        ahead = right = down = 0.0
        for k in range(3):
            world = from_unit[k, 0] * x + from_unit[k, 1] * y + from_unit[k, 2] * z + row[1 + k] - camera[k, 3]
            right += camera[k, 0] * world
            down += camera[k, 1] * world
            ahead += camera[k, 2] * world
        if ahead < 1e-3:
            box[0], box[1], box[2], box[3] = 0, side - 1, 0, side - 1
            return
        low_u, high_u = min(low_u, right / ahead), max(high_u, right / ahead)
        low_v, high_v = min(low_v, down / ahead), max(high_v, down / ahead)
    box[0] = int(math.floor(low_u / pixel + 0.5 * side)) - 1
    box[1] = int(math.floor(high_u / pixel + 0.5 * side)) + 1
    box[2] = int(math.floor(low_v / pixel + 0.5 * side)) - 1
    box[3] = int(math.floor(high_v / pixel + 0.5 * side)) + 1
