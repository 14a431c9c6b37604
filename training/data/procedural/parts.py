"""Building blocks of composite objects: small functions that place one primitive each.

Frame of an object while it is built: z up, front towards -y (azimuth 0 sees it from there), x to the viewer's right;
any size and place, `fit` brings it into the unit box. ``tilt`` is in degrees about the part's own x, then y; ``yaw``
about z after that. `LYING_X` and `LYING_Y` lay the axis of a round part along x and y.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from training.data.procedural.palette import Rgb
from training.data.procedural.shapes import (
    CAPSULE,
    CONE,
    CUBE,
    CYLINDER,
    DIAMOND,
    DOME,
    FRUSTUM,
    PRISM,
    PYRAMID,
    SPHERE,
    TORUS,
    TUBE,
    WEDGE,
    Primitive,
)

Vector = tuple[float, float, float]
Tilt = tuple[float, float]
Parts = list[Primitive]
LYING_X: Tilt = (0.0, 90.0)
LYING_Y: Tilt = (90.0, 0.0)  # top towards -y, the front
FIT_RADIUS = 0.435  # inside the frame from every side at distance 1.4, with a margin of a pixel at 24 px


def ball(at: Vector, radius: float | Vector, rgb: Rgb, tilt: Tilt = (0, 0), yaw: float = 0) -> Primitive:
    """Sphere, or ellipsoid with three radii."""
    return Primitive(SPHERE, _three(radius), yaw, at, rgb, tilt)


def box(at: Vector, half: float | Vector, rgb: Rgb, tilt: Tilt = (0, 0), yaw: float = 0) -> Primitive:
    """Box of half extents."""
    return Primitive(CUBE, _three(half), yaw, at, rgb, tilt)


def rod(at: Vector, radius: float | tuple[float, float], half: float, rgb: Rgb, tilt: Tilt = (0, 0)) -> Primitive:
    """Cylinder of half length `half`."""
    return Primitive(CYLINDER, (*_two(radius), half), 0, at, rgb, tilt)


def cone(
    at: Vector, radius: float | tuple[float, float], half: float, rgb: Rgb, tilt: Tilt = (0, 0), yaw: float = 0
) -> Primitive:
    """Cone, centre half way up."""
    return Primitive(CONE, (*_two(radius), half), yaw, at, rgb, tilt)


def frustum(at: Vector, bottom: float, top: float, half: float, rgb: Rgb, tilt: Tilt = (0, 0)) -> Primitive:
    """Cone cut flat, from radius `bottom` to radius `top`, whichever is larger."""
    if top > bottom:
        tilt = (tilt[0] + 180, tilt[1])
    large, small = max(top, bottom), min(top, bottom)
    return Primitive(FRUSTUM, (large, large, half), 0, at, rgb, tilt, small / large)


def ring(at: Vector, radius: float, tube: float, rgb: Rgb, tilt: Tilt = (0, 0), flat: float = 1) -> Primitive:
    """Torus of outer radius `radius`; `flat` scales its height."""
    return Primitive(TORUS, (radius, radius, radius * flat), 0, at, rgb, tilt, tube / radius)


def wall(at: Vector, radius: float, inner: float, half: float, rgb: Rgb, tilt: Tilt = (0, 0)) -> Primitive:
    """Tube: the wall of a cup."""
    return Primitive(TUBE, (radius, radius, half), 0, at, rgb, tilt, inner / radius)


def dome(at: Vector, radius: float | Vector, rgb: Rgb, tilt: Tilt = (0, 0), yaw: float = 0) -> Primitive:
    """Upper half of a ball or ellipsoid; `at` is the middle of its flat face."""
    return Primitive(DOME, _three(radius), yaw, at, rgb, tilt)


def wedge(at: Vector, half: Vector, rgb: Rgb, tilt: Tilt = (0, 0), yaw: float = 0) -> Primitive:
    """Box cut along the diagonal: its slope rises from the front edge (-y) to the top at the back (+y)."""
    return Primitive(WEDGE, half, yaw, at, rgb, tilt)


def roof(at: Vector, half: Vector, rgb: Rgb, tilt: Tilt = (0, 0), yaw: float = 0) -> Primitive:
    """Triangular prism with its ridge along y."""
    return Primitive(PRISM, half, yaw, at, rgb, tilt)


def gem(at: Vector, half: Vector, rgb: Rgb, yaw: float = 0) -> Primitive:
    """Octahedron."""
    return Primitive(DIAMOND, half, yaw, at, rgb)


def limb(start: Vector, end: Vector, radius: float, rgb: Rgb) -> Primitive:
    """Capsule around the segment from `start` to `end`."""
    a, b = np.array(start, float), np.array(end, float)
    along = b - a
    length = float(np.linalg.norm(along))
    half = 0.5 * length + radius
    polar = math.degrees(math.acos(along[2] / length))
    yaw = math.degrees(math.atan2(along[1], along[0]))
    return Primitive(CAPSULE, (half,) * 3, yaw, _vector(0.5 * (a + b)), rgb, (0, polar), radius / half)


def painted(part: Primitive, pattern: int, bands: int, second_rgb: Rgb) -> Primitive:
    """The same part with a pattern."""
    return replace(part, pattern=pattern, bands=bands, second_rgb=second_rgb)


def moved(parts: Sequence[Primitive], shift: Vector) -> Parts:
    """The same parts, shifted."""
    dx, dy, dz = shift
    return [replace(p, centre=(x + dx, y + dy, z + dz)) for p, (x, y, z) in ((p, p.centre) for p in parts)]


def turned(parts: Sequence[Primitive], yaw_deg: float) -> Parts:
    """The same parts, turned about the world's z axis."""
    c, s = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
    return [
        replace(p, yaw_deg=p.yaw_deg + yaw_deg, centre=(c * x - s * y, s * x + c * y, z))
        for p, (x, y, z) in ((p, p.centre) for p in parts)
    ]


def bounds(parts: Sequence[Primitive]) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a box around the parts, [3] and [3]; exact for balls and boxes, generous for the others."""
    lows, highs = [], []
    for part in parts:
        axes = part.rotation() * np.array(part.scale)  # [3, 3], columns
        low, high = part.unit_box()
        middle = axes @ (0.5 * (low + high)) + np.array(part.centre)
        half = np.linalg.norm(axes, axis=1) if part.shape == SPHERE else np.abs(axes) @ (0.5 * (high - low))
        lows.append(middle - half)
        highs.append(middle + half)
    return np.min(lows, axis=0), np.max(highs, axis=0)


def fit(parts: Sequence[Primitive], radius: float = FIT_RADIUS) -> Parts:
    """Centre the parts' box at the origin and scale them into a ball of the given radius."""
    low, high = bounds(parts)
    middle = 0.5 * (low + high)
    reach = max(_reach(part, middle) for part in parts)
    factor = radius / reach
    return [
        replace(
            part,
            centre=_vector((np.array(part.centre) - middle) * factor),
            scale=_vector(np.array(part.scale) * factor),
        )
        for part in parts
    ]


def _reach(part: Primitive, middle: np.ndarray) -> float:
    """Largest distance of the part from a point, from above: by its cloud of corners or, if round, by its radius."""
    away = np.array(part.centre) - middle
    if part.shape == SPHERE:
        return float(np.linalg.norm(away) + max(part.scale))
    axes = part.rotation() * np.array(part.scale)
    return float(np.linalg.norm(_OUTLINES[part.shape](part) @ axes.T + away, axis=1).max())


def _discs(*levels: tuple[float, float]) -> np.ndarray:
    """Polygons around discs of (height, radius): they contain the discs."""
    angles = np.radians(np.arange(16) * 22.5)
    rim = 1.0 / math.cos(math.radians(11.25))
    return np.concatenate(
        [np.stack([r * rim * np.cos(angles), r * rim * np.sin(angles), np.full(16, z)], 1) for z, r in levels]
    )


def _corners(part: Primitive) -> np.ndarray:
    low, high = part.unit_box()
    return np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])])


_OUTLINES = {
    CUBE: _corners,
    WEDGE: _corners,
    PRISM: lambda part: np.array([[x, y, -1.0] for x in (-1, 1) for y in (-1, 1)] + [[0.0, -1, 1], [0, 1, 1]]),
    PYRAMID: lambda part: np.array([[x, y, -1.0] for x in (-1, 1) for y in (-1, 1)] + [[0.0, 0, 1]]),
    DIAMOND: lambda part: np.concatenate([np.eye(3), -np.eye(3)]),
    CONE: lambda part: _discs((-1, 1), (1, 0)),
    FRUSTUM: lambda part: _discs((-1, 1), (1, part.parameter)),
    CYLINDER: lambda part: _discs((-1, 1), (1, 1)),
    TUBE: lambda part: _discs((-1, 1), (1, 1)),
    DOME: lambda part: _discs((0, 1), (0.42, 1), (1, 0.42)),
    TORUS: lambda part: _discs((-part.parameter, 1), (part.parameter, 1)),
    CAPSULE: lambda part: _discs((-1, 0.5 * part.parameter), (1, 0.5 * part.parameter)),
}


def _vector(values: np.ndarray) -> Vector:
    x, y, z = values.tolist()
    return x, y, z


def _three(value: float | Vector) -> Vector:
    return value if isinstance(value, tuple) else (value, value, value)


def _two(value: float | tuple[float, float]) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)
