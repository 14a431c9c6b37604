"""Ray against the other unit shapes: same contract as `hits_basic`, some with one shape parameter.

All are closed forms except the torus, whose quartic is solved by Newton steps to 1e-12 of its unit size.
"""

import math

import numpy as np
from numpy.typing import NDArray

from training.data.procedural.hits_basic import MISS, T_MIN, Hit
from training.data.procedural.jit import compiled

_jit = compiled

# Convex solids as half spaces a x + b y + c z <= d, rows (a, b, c, d), gradients pointing outward.
PYRAMID_PLANES = np.array([[2, 0, 1, 1], [-2, 0, 1, 1], [0, 2, 1, 1], [0, -2, 1, 1], [0, 0, -1, 1]], np.float64)
WEDGE_PLANES = np.array([[1, 0, 0, 1], [-1, 0, 0, 1], [0, -1, 1, 0], [0, 1, 0, 1], [0, 0, -1, 1]], np.float64)
PRISM_PLANES = np.array([[2, 0, 1, 1], [-2, 0, 1, 1], [0, 1, 0, 1], [0, -1, 0, 1], [0, 0, -1, 1]], np.float64)
DIAMOND_PLANES = np.array([[i, j, k, 1] for i in (1, -1) for j in (1, -1) for k in (1, -1)], np.float64)

_NEWTON_STEPS = 40
_NEWTON_TOLERANCE = 1e-12


@_jit
def hit_planes(planes: NDArray[np.float64], ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Intersection of half spaces [N, 4]."""
    near, far = -MISS, MISS
    face = -1
    for k in range(planes.shape[0]):
        outside = planes[k, 0] * ox + planes[k, 1] * oy + planes[k, 2] * oz - planes[k, 3]
        slope = planes[k, 0] * dx + planes[k, 1] * dy + planes[k, 2] * dz
        if slope < 0.0:
            if -outside / slope > near:
                near, face = -outside / slope, k
        elif slope > 0.0:
            far = min(far, -outside / slope)
        elif outside > 0.0:
            return MISS, 0.0, 0.0, 0.0
    if face < 0 or near > far or near < T_MIN:
        return MISS, 0.0, 0.0, 0.0
    return near, planes[face, 0], planes[face, 1], planes[face, 2]


@_jit
def hit_capsule(radius: float, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Points within `radius` of the segment from z = radius - 1 to z = 1 - radius."""
    half = 1.0 - radius
    best = MISS
    nx = ny = nz = 0.0
    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    disc = b * b - a * (ox * ox + oy * oy - radius * radius)
    if a > 0.0:
        if disc < 0.0:
            return MISS, 0.0, 0.0, 0.0
        t = (-b - math.sqrt(disc)) / a
        if t >= T_MIN and abs(oz + t * dz) <= half:
            return t, ox + t * dx, oy + t * dy, 0.0
    a += dz * dz
    for end in (-half, half):
        pz = oz - end
        b = ox * dx + oy * dy + pz * dz
        disc = b * b - a * (ox * ox + oy * oy + pz * pz - radius * radius)
        if disc >= 0.0:
            t = (-b - math.sqrt(disc)) / a
            if T_MIN <= t < best:
                best, nx, ny, nz = t, ox + t * dx, oy + t * dy, pz + t * dz
    return best, nx, ny, nz


@_jit
def _hit_annulus(
    z: float, inner: float, outer: float, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float
) -> float:
    """Ring between two radii in the plane at height z: the ray parameter, or MISS."""
    t = (z - oz) / dz
    x, y = ox + t * dx, oy + t * dy
    square = x * x + y * y
    if t >= T_MIN and inner * inner <= square <= outer * outer:
        return t
    return MISS


@_jit
def hit_dome(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Upper half of the unit ball, closed by its disc at z = 0."""
    best = MISS
    nx = ny = nz = 0.0
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    disc = b * b - a * (ox * ox + oy * oy + oz * oz - 1.0)
    if disc < 0.0:
        return MISS, 0.0, 0.0, 0.0
    t = (-b - math.sqrt(disc)) / a
    if t >= T_MIN and oz + t * dz >= 0.0:
        best, nx, ny, nz = t, ox + t * dx, oy + t * dy, oz + t * dz
    t = _hit_annulus(0.0, 0.0, 1.0, ox, oy, oz, dx, dy, dz)
    if t < best:
        best, nx, ny, nz = t, 0.0, 0.0, -1.0
    return best, nx, ny, nz


@_jit
def hit_tube(inner: float, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Between the cylinders of radius `inner` and 1, -1 <= z <= 1: a ring, a pipe, the wall of a cup."""
    best = MISS
    nx = ny = nz = 0.0
    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    square = ox * ox + oy * oy
    disc = b * b - a * (square - 1.0)
    if a > 0.0 and disc >= 0.0:
        t = (-b - math.sqrt(disc)) / a
        if t >= T_MIN and abs(oz + t * dz) <= 1.0:
            best, nx, ny, nz = t, ox + t * dx, oy + t * dy, 0.0
        disc = b * b - a * (square - inner * inner)
        if disc >= 0.0:
            t = (-b + math.sqrt(disc)) / a  # the far side of the bore faces the ray
            if T_MIN <= t < best and abs(oz + t * dz) <= 1.0:
                best, nx, ny, nz = t, -(ox + t * dx), -(oy + t * dy), 0.0
    for cap in (-1.0, 1.0):
        t = _hit_annulus(cap, inner, 1.0, ox, oy, oz, dx, dy, dz)
        if t < best:
            best, nx, ny, nz = t, 0.0, 0.0, cap
    return best, nx, ny, nz


@_jit
def hit_frustum(top: float, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Cone cut flat: radius 1 at z = -1, radius `top` in (0, 1) at z = 1."""
    best = MISS
    nx = ny = nz = 0.0
    taper = 0.5 * (1.0 - top)
    h, k = 1.0 - taper * (1.0 + oz), -taper * dz  # radius along the ray: h + k t
    a = dx * dx + dy * dy - k * k
    b = ox * dx + oy * dy - h * k
    c = ox * ox + oy * oy - h * h
    disc = b * b - a * c
    if disc >= 0.0:
        root = math.sqrt(disc)
        q = -b - root if b >= 0.0 else -b + root  # stays finite when the ray is parallel to the side
        for t in (q / a, c / q):
            if T_MIN <= t < best and abs(oz + t * dz) <= 1.0:
                best = t
                nx, ny, nz = ox + t * dx, oy + t * dy, taper * (h + k * t)
    t = _hit_annulus(-1.0, 0.0, 1.0, ox, oy, oz, dx, dy, dz)
    if t < best:
        best, nx, ny, nz = t, 0.0, 0.0, -1.0
    t = _hit_annulus(1.0, 0.0, top, ox, oy, oz, dx, dy, dz)
    if t < best:
        best, nx, ny, nz = t, 0.0, 0.0, 1.0
    return best, nx, ny, nz


@_jit
def hit_torus(tube: float, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Circle of radius 1 - tube in the plane z = 0, thickened by `tube`: the outer radius is 1.

    Along a ray counted from its point nearest to the origin the surface is s^4 + p s^2 + q s + e = 0. The quartic falls
    from the left to its first minimum, where it is convex, and after its hump to a second one. Newton steps started
    where they cannot overshoot (convex from above, concave from below) find the first root or show that the ray misses.
    """
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    ux, uy, uz = dx / length, dy / length, dz / length
    nearest = -(ox * ux + oy * uy + oz * uz)
    ax, ay, az = ox + nearest * ux, oy + nearest * uy, oz + nearest * uz
    square = ax * ax + ay * ay + az * az
    if square > 1.0:
        return MISS, 0.0, 0.0, 0.0
    reach = math.sqrt(1.0 - square)
    if min(abs(az - reach * uz), abs(az + reach * uz)) > tube and (az - reach * uz) * (az + reach * uz) > 0.0:
        return MISS, 0.0, 0.0, 0.0  # above or below the slab |z| <= tube all the way
    ring = 1.0 - tube
    k = square + ring * ring - tube * tube
    four = 4.0 * ring * ring
    p = 2.0 * k - four * (ux * ux + uy * uy)
    q = -2.0 * four * (ax * ux + ay * uy)
    e = k * k - four * (ax * ax + ay * ay)
    bend = math.sqrt(-p / 6.0) if p < 0.0 else 0.0  # concave between -bend and bend
    s, found = _newton(p, q, e, -reach, -bend if p < 0.0 else reach)
    if not found and p < 0.0:
        s, found = _newton(p, q, e, bend, reach)
    t = (nearest + s) / length
    if not found or t < T_MIN:
        return MISS, 0.0, 0.0, 0.0
    x, y, z = ax + s * ux, ay + s * uy, az + s * uz
    radius = math.sqrt(x * x + y * y)
    return t, x * (radius - ring) / radius, y * (radius - ring) / radius, z


@_jit
def _newton(p: float, q: float, e: float, start: float, end: float) -> tuple[float, bool]:
    """Root of the falling quartic reached from `start` without passing `end`: (s, whether there is one)."""
    s = start
    for _ in range(_NEWTON_STEPS):
        value = ((s * s + p) * s + q) * s + e
        slope = (4.0 * s * s + 2.0 * p) * s + q
        if slope >= 0.0:
            return s, False
        step = -value / slope
        s += step
        if s > end:
            return s, False
        if abs(step) < _NEWTON_TOLERANCE:
            return s, True
    return s, False
