"""Unit shapes by id, and `Primitive`, which places and paints one of them.

The affine map from the object to a unit shape keeps the ray parameter, so a direction whose camera z is 1 gives planar
depth at once. A new shape needs a ``hit_`` function, an id, a unit box and a branch in `_hit_more`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.procedural.hits_basic import MISS, Hit, hit_cone, hit_cube, hit_cylinder, hit_sphere
from training.data.procedural.hits_more import (
    DIAMOND_PLANES,
    PRISM_PLANES,
    PYRAMID_PLANES,
    WEDGE_PLANES,
    hit_capsule,
    hit_dome,
    hit_frustum,
    hit_planes,
    hit_torus,
    hit_tube,
)
from training.data.procedural.jit import compiled

__all__ = ["MISS", "Primitive", "hit_unit", "painted_second"]

SPHERE, CUBE, CONE, CYLINDER, TORUS, CAPSULE, PYRAMID, DOME, WEDGE, PRISM, DIAMOND, TUBE, FRUSTUM = range(13)
PLAIN, STRIPES, SECTORS = range(3)  # stripes: bands along the unit shape's z; sectors: slices of its azimuth

_jit = compiled(inline=True)


@dataclass(frozen=True)
class Primitive:
    """One placed, coloured shape. Frame: the object's z-up world."""

    shape: int
    scale: tuple[float, float, float]  # half extents along the shape's own axes, where its unit box is [-1, 1]^3
    yaw_deg: float  # about +z, after the tilt
    centre: tuple[float, float, float]
    rgb: tuple[float, float, float]  # in [0, 1]
    tilt_deg: tuple[float, float] = (0.0, 0.0)  # about the shape's x, then about y
    parameter: float = 0.0  # tube of a torus, radius of a capsule, bore of a tube, top of a frustum; in (0, 1)
    pattern: int = PLAIN
    bands: int = 0  # number of stripes or sectors
    second_rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def rotation(self) -> NDArray[np.float64]:
        """Shape axes to world, [3, 3]."""
        yaw = math.radians(self.yaw_deg)
        turn = np.array([[math.cos(yaw), -math.sin(yaw), 0.0], [math.sin(yaw), math.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
        if self.tilt_deg == (0.0, 0.0):
            return turn
        a, b = (math.radians(angle) for angle in self.tilt_deg)
        about_x = np.array([[1.0, 0.0, 0.0], [0.0, math.cos(a), -math.sin(a)], [0.0, math.sin(a), math.cos(a)]])
        about_y = np.array([[math.cos(b), 0.0, math.sin(b)], [0.0, 1.0, 0.0], [-math.sin(b), 0.0, math.cos(b)]])
        return turn @ about_y @ about_x

    def to_unit(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """World points [..., 3] in the frame of the unit shape."""
        return (points - np.array(self.centre)) @ self.rotation() / np.array(self.scale)

    def unit_box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lowest and highest corner of the unit shape, [3] and [3], inside [-1, 1]^3."""
        low, high = -np.ones(3), np.ones(3)
        if self.shape == TORUS:
            low[2], high[2] = -self.parameter, self.parameter
        elif self.shape == CAPSULE:
            low[:2], high[:2] = -self.parameter, self.parameter
        elif self.shape == DOME:
            low[2] = 0.0
        return low, high

    def row(self) -> NDArray[np.float64]:
        """The row of numbers that the kernel reads, [28].

        Shape, centre 3, rotation / scale 9 (world -> unit, row-major), rgb 3, parameter, pattern, bands, second rgb 3,
        unit box 6 (low, high).
        """
        to_unit = self.rotation().T / np.array(self.scale)[:, None]
        look = [self.parameter, float(self.pattern), float(self.bands)]
        return np.concatenate(
            [[float(self.shape)], self.centre, to_unit.ravel(), self.rgb, look, self.second_rgb, *self.unit_box()]
        )


@_jit
def hit_unit(shape: float, parameter: float, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Dispatch on the shape's id."""
    if shape == SPHERE:
        return hit_sphere(ox, oy, oz, dx, dy, dz)
    if shape == CUBE:
        return hit_cube(ox, oy, oz, dx, dy, dz)
    if shape == CONE:
        return hit_cone(ox, oy, oz, dx, dy, dz)
    if shape == CYLINDER:
        return hit_cylinder(ox, oy, oz, dx, dy, dz)
    return _hit_more(shape, parameter, ox, oy, oz, dx, dy, dz)


@compiled
def _hit_more(shape: float, parameter: float, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    if shape == TORUS:
        return hit_torus(parameter, ox, oy, oz, dx, dy, dz)
    if shape == CAPSULE:
        return hit_capsule(parameter, ox, oy, oz, dx, dy, dz)
    if shape == PYRAMID:
        return hit_planes(PYRAMID_PLANES, ox, oy, oz, dx, dy, dz)
    if shape == DOME:
        return hit_dome(ox, oy, oz, dx, dy, dz)
    if shape == WEDGE:
        return hit_planes(WEDGE_PLANES, ox, oy, oz, dx, dy, dz)
    if shape == PRISM:
        return hit_planes(PRISM_PLANES, ox, oy, oz, dx, dy, dz)
    if shape == DIAMOND:
        return hit_planes(DIAMOND_PLANES, ox, oy, oz, dx, dy, dz)
    if shape == TUBE:
        return hit_tube(parameter, ox, oy, oz, dx, dy, dz)
    return hit_frustum(parameter, ox, oy, oz, dx, dy, dz)


@compiled
def painted_second(pattern: float, bands: float, low_z: float, high_z: float, x: float, y: float, z: float) -> bool:
    """Whether a point of the unit shape has the second colour: every other band, from the lowest z or azimuth 0."""
    if pattern == STRIPES:
        share = (z - low_z) / (high_z - low_z)
    elif pattern == SECTORS:
        share = 0.5 + math.atan2(y, x) / (2.0 * math.pi)
    else:
        return False
    return int(math.floor(min(max(share, 0.0), 0.999999) * bands)) % 2 == 1
