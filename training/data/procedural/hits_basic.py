"""Ray against the four basic unit shapes, in closed form, for numba.

Each unit shape lives in its own z-up frame inside [-1, 1]^3. A function ``hit_<shape>(o, d)`` takes origin and
direction in that frame and returns ``(t, nx, ny, nz)``: the nearest positive ray parameter, or `MISS`, and the
outward normal there, not normalised.
"""

import math

import numpy as np

from training.data.procedural.jit import compiled

Hit = tuple[float, float, float, float]  # ray parameter, normal x, y, z
MISS = np.inf
T_MIN = 1e-6

_jit = compiled(inline=True)


@_jit
def hit_sphere(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Unit sphere."""
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    disc = b * b - a * c
    if disc < 0.0:
        return MISS, 0.0, 0.0, 0.0
    t = (-b - math.sqrt(disc)) / a
    if t < T_MIN:
        return MISS, 0.0, 0.0, 0.0
    return t, ox + t * dx, oy + t * dy, oz + t * dz


@_jit
def hit_cube(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Cube [-1, 1]^3 by slabs; a direction of exactly zero gives infinite slab ends, which compare correctly."""
    near = -MISS
    far = MISS
    nx = ny = nz = 0.0
    ta, tb = (-1.0 - ox) / dx, (1.0 - ox) / dx
    if min(ta, tb) > near:
        near, nx, ny, nz = min(ta, tb), -math.copysign(1.0, dx), 0.0, 0.0
    far = min(far, max(ta, tb))
    ta, tb = (-1.0 - oy) / dy, (1.0 - oy) / dy
    if min(ta, tb) > near:
        near, nx, ny, nz = min(ta, tb), 0.0, -math.copysign(1.0, dy), 0.0
    far = min(far, max(ta, tb))
    ta, tb = (-1.0 - oz) / dz, (1.0 - oz) / dz
    if min(ta, tb) > near:
        near, nx, ny, nz = min(ta, tb), 0.0, 0.0, -math.copysign(1.0, dz)
    far = min(far, max(ta, tb))
    if near > far or near < T_MIN:
        return MISS, 0.0, 0.0, 0.0
    return near, nx, ny, nz


@_jit
def _hit_disc(z: float, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> float:
    """Unit disc in the plane at height z: the ray parameter, or MISS."""
    t = (z - oz) / dz
    x, y = ox + t * dx, oy + t * dy
    if t >= T_MIN and x * x + y * y <= 1.0:
        return t
    return MISS


@_jit
def hit_cylinder(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Radius 1 about z, closed by discs at z = -1 and z = 1."""
    best = MISS
    nx = ny = nz = 0.0
    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    disc = b * b - a * (ox * ox + oy * oy - 1.0)
    if disc >= 0.0 and a > 0.0:
        t = (-b - math.sqrt(disc)) / a
        if t >= T_MIN and abs(oz + t * dz) <= 1.0:
            best, nx, ny, nz = t, ox + t * dx, oy + t * dy, 0.0
    for cap in (-1.0, 1.0):
        t = _hit_disc(cap, ox, oy, oz, dx, dy, dz)
        if t < best:
            best, nx, ny, nz = t, 0.0, 0.0, cap
    return best, nx, ny, nz


@_jit
def hit_cone(ox: float, oy: float, oz: float, dx: float, dy: float, dz: float) -> Hit:
    """Apex (0, 0, 1), base disc of radius 1 at z = -1: x^2 + y^2 = ((1 - z) / 2)^2."""
    best = MISS
    nx = ny = nz = 0.0
    h, k = 0.5 * (1.0 - oz), -0.5 * dz  # radius along the ray: h + k t
    a = dx * dx + dy * dy - k * k
    b = ox * dx + oy * dy - h * k
    c = ox * ox + oy * oy - h * h
    disc = b * b - a * c
    if disc >= 0.0:
        root = math.sqrt(disc)
        # Citardauq form: stays finite when the ray is parallel to the side (a = 0).
        q = -b - root if b >= 0.0 else -b + root
        for t in (q / a, c / q):
            z = oz + t * dz
            if T_MIN <= t < best and -1.0 <= z <= 1.0:
                best = t
                nx, ny, nz = ox + t * dx, oy + t * dy, 0.25 * (1.0 - z)
    t = _hit_disc(-1.0, ox, oy, oz, dx, dy, dz)
    if t < best:
        best, nx, ny, nz = t, 0.0, 0.0, -1.0
    return best, nx, ny, nz
