"""The named primitive shapes, and how a name becomes a placed primitive.

Half extents are those of the largest instance, whose bounding ball of at most 0.45 fits the frame from every side.
`SHAPES` are those of the basic configuration and never change; `ALL_SHAPES` adds more.
"""

from typing import NamedTuple

from training.data.procedural.palette import Rgb
from training.data.procedural.shapes import (
    CAPSULE,
    CONE,
    CUBE,
    CYLINDER,
    DIAMOND,
    DOME,
    PLAIN,
    PRISM,
    PYRAMID,
    SECTORS,
    SPHERE,
    STRIPES,
    TORUS,
    TUBE,
    WEDGE,
    Primitive,
)

SHAPES: dict[str, tuple[int, tuple[float, float, float]]] = {
    "sphere": (SPHERE, (0.42, 0.42, 0.42)),
    "cube": (CUBE, (0.26, 0.26, 0.26)),
    "cone": (CONE, (0.29, 0.29, 0.34)),
    "cylinder": (CYLINDER, (0.26, 0.26, 0.34)),
}
SIZES: dict[str, float] = {"small": 0.62, "medium": 0.80, "large": 1.0}


class Solid(NamedTuple):
    """A named shape."""

    shape: int
    half: tuple[float, float, float]  # half extents of the largest instance
    nouns: tuple[str, ...] = ()  # other names
    parameter: float = 0.0
    stripes: tuple[int, int] = (STRIPES, 4)  # pattern and number of bands when striped
    halves: tuple[int, int] = (STRIPES, 2)  # and when two-tone
    tilt_deg: tuple[float, float] = (0.0, 0.0)


_SLICES, _SIDES = (SECTORS, 6), (SECTORS, 2)  # flat things, whose z says little
ALL_SHAPES: dict[str, Solid] = {
    "sphere": Solid(*SHAPES["sphere"], ("ball", "orb")),
    "cube": Solid(*SHAPES["cube"], ("block",)),
    "cone": Solid(*SHAPES["cone"]),
    "cylinder": Solid(*SHAPES["cylinder"], ("drum",)),
    "torus": Solid(TORUS, (0.44, 0.44, 0.44), ("hoop",), 0.30, _SLICES, _SIDES),
    "capsule": Solid(CAPSULE, (0.44, 0.44, 0.44), ("pill",), 0.42),
    "pyramid": Solid(PYRAMID, (0.28, 0.28, 0.21)),
    "ellipsoid": Solid(SPHERE, (0.28, 0.28, 0.44), ("egg", "oval")),
    "box": Solid(CUBE, (0.13, 0.20, 0.37), ("cuboid",), tilt_deg=(0.0, 90.0)),
    "dome": Solid(DOME, (0.38, 0.38, 0.38), ("hemisphere", "half sphere")),
    "wedge": Solid(WEDGE, (0.22, 0.30, 0.22), ("ramp",)),
    "prism": Solid(PRISM, (0.26, 0.30, 0.20), ("triangular prism",)),
    "diamond": Solid(DIAMOND, (0.32, 0.32, 0.44), ("octahedron", "gem")),
    "ring": Solid(TUBE, (0.40, 0.40, 0.17), ("tube",), 0.78, _SLICES, _SIDES),
}
PATTERNS = ("plain", "striped", "two-tone")


def solid_primitive(
    name: str, factor: float, yaw_deg: float, rgb: Rgb, pattern: str = "plain", second_rgb: Rgb = (0.0, 0.0, 0.0)
) -> Primitive:
    """One instance of a named shape, `factor` times its largest size, its unit frame at the origin."""
    solid = ALL_SHAPES[name]
    half = (solid.half[0] * factor, solid.half[1] * factor, solid.half[2] * factor)
    kind, bands = {"plain": (PLAIN, 0), "striped": solid.stripes, "two-tone": solid.halves}[pattern]
    return Primitive(
        solid.shape, half, yaw_deg, (0.0, 0.0, 0.0), rgb, solid.tilt_deg, solid.parameter, kind, bands, second_rgb
    )
