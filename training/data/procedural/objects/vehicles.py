"""Things that go, seen from their side: the nose points to +x."""

import math

from training.data.procedural.objects.kind import ANY, BRIGHT, Composite, Draw
from training.data.procedural.palette import CREAM, DARK, GLASS, GOLD, ORANGE, PALETTE, RED, STEEL, WHITE, WOOD, YELLOW
from training.data.procedural.parts import (
    LYING_X,
    LYING_Y,
    Parts,
    ball,
    box,
    cone,
    dome,
    frustum,
    limb,
    ring,
    rod,
    wedge,
)


def _wheels(xs: tuple[float, ...], y: float, z: float, radius: float, hub: tuple[float, float, float] = STEEL) -> Parts:
    parts: Parts = []
    for x in xs:
        for s in (-1, 1):
            parts.append(rod((x, s * y, z), radius, 0.07, DARK, LYING_Y))
            parts.append(rod((x, s * y, z), radius * 0.5, 0.08, hub, LYING_Y))
    return parts


def car(d: Draw) -> Parts:
    long, cabin = d.between(0.66, 0.74), d.between(0.16, 0.20)
    parts = [
        box((0, 0, 0), (long, 0.32, 0.14), d.main),
        ball((long, 0, 0), (0.10, 0.32, 0.14), d.main),
        ball((-long, 0, 0), (0.10, 0.32, 0.14), d.main),
        box((-0.08, 0, 0.12 + cabin), (0.34, 0.27, cabin), GLASS),
        box((-0.08, 0, 0.13 + 2 * cabin), (0.34, 0.28, 0.035), d.main),
        wedge((0.36, 0, 0.12 + cabin), (0.27, 0.13, cabin), GLASS, yaw=90),
        *(box((x, 0, 0.12 + cabin), (0.03, 0.28, cabin), d.main) for x in (-0.41, -0.08)),
    ]
    for s in (-1, 1):
        parts.append(ball((long + 0.06, s * 0.20, 0.03), 0.06, YELLOW))
        parts.append(ball((-long - 0.06, s * 0.20, 0.03), 0.05, RED))
    return parts + _wheels((-0.42, 0.42), 0.30, -0.15, 0.17)


def truck(d: Draw) -> Parts:
    load = d.one_of(WHITE, STEEL, YELLOW, PALETTE["blue"])
    return [
        box((0.52, 0, 0.12), (0.22, 0.30, 0.28), d.main),
        box((0.70, 0, 0.22), (0.05, 0.26, 0.12), GLASS),
        *(box((0.56, s * 0.295, 0.22), (0.12, 0.015, 0.11), GLASS) for s in (-1, 1)),
        box((-0.24, 0, 0.22), (0.50, 0.32, d.between(0.34, 0.40)), load),
        box((0, 0, -0.16), (0.72, 0.26, 0.06), DARK),
        *_wheels((-0.50, -0.14, 0.50), 0.28, -0.22, 0.15),
    ]


def train(d: Draw) -> Parts:
    """A steam engine."""
    boiler, funnel = d.between(0.19, 0.24), d.between(0.12, 0.18)
    return [
        rod((0.22, 0, 0.16), boiler, 0.42, d.main, LYING_X),
        rod((0.65, 0, 0.16), boiler - 0.02, 0.03, DARK, LYING_X),
        box((-0.40, 0, 0.24), (0.22, 0.28, 0.32), d.main),
        *(box((-0.40, s * 0.27, 0.36), (0.12, 0.02, 0.11), GLASS) for s in (-1, 1)),
        box((-0.40, 0, 0.58), (0.28, 0.33, 0.04), DARK),
        frustum((0.44, 0, 0.34 + funnel), 0.08, 0.14, funnel, DARK),
        dome((0.08, 0, 0.36), 0.11, GOLD),
        box((0, 0, -0.10), (0.66, 0.25, 0.06), DARK),
        wedge((0.74, 0, -0.18), (0.25, 0.12, 0.10), RED, yaw=-90 + 180),
        *_wheels((-0.42, 0.02, 0.42), 0.26, -0.20, 0.16, RED),
    ]


def rocket(d: Draw) -> Parts:
    tall, fins = d.between(0.42, 0.52), 4
    body = d.one_of(WHITE, WHITE, STEEL)
    parts = [
        rod((0, 0, 0), 0.22, tall, body),
        cone((0, 0, tall + 0.20), 0.22, 0.20, d.main),
        rod((0, 0, -tall * 0.45), 0.225, 0.05, d.main),
        frustum((0, 0, -tall - 0.06), 0.18, 0.12, 0.07, DARK),
        cone((0, 0, -tall - 0.24), 0.11, 0.14, ORANGE, (180, 0)),
        ball((0, -0.19, tall * 0.40), (0.10, 0.06, 0.10), GLASS),
        ring((0, -0.20, tall * 0.40), 0.14, 0.035, d.main, LYING_Y),
    ]
    for k in range(fins):
        a = 45 + 90.0 * k
        x, y = math.cos(math.radians(a)), math.sin(math.radians(a))
        parts.append(wedge((0.31 * x, 0.31 * y, -tall + 0.10), (0.025, 0.15, 0.22), d.main, yaw=a + 90))
    return parts


def boat(d: Draw) -> Parts:
    """A sailing boat."""
    sail = d.one_of(WHITE, CREAM, YELLOW)
    tall = d.between(0.42, 0.52)
    return [
        dome((0, 0, 0), (0.62, 0.26, 0.26), d.main, (180, 0)),
        box((0, 0, 0.01), (0.44, 0.18, 0.02), WOOD),
        rod((0, 0, tall), 0.025, tall, WOOD),
        wedge((-0.22, 0, tall + 0.08), (0.012, 0.20, tall * 0.8), sail, yaw=-90),
        wedge((0.18, 0, tall - 0.02), (0.012, 0.15, tall * 0.6), sail, yaw=90),
        cone((0, 0, 2 * tall + 0.05), 0.04, 0.05, RED),
    ]


def airplane(d: Draw) -> Parts:
    trim = d.one_of(WHITE, STEEL, YELLOW)
    parts = [
        ball((0, 0, 0), (0.17, 0.17, 0.72), d.main, LYING_X),
        box((0.06, 0, -0.03), (0.16, 0.75, 0.03), d.main),
        box((-0.58, 0, 0.06), (0.10, 0.28, 0.025), d.main),
        wedge((-0.58, 0, 0.20), (0.025, 0.13, 0.18), d.main, yaw=-90 + 180 + 180),
        ball((0.36, 0, 0.10), (0.17, 0.11, 0.10), GLASS),
        rod((0.72, 0, 0), 0.05, 0.04, DARK, LYING_X),
        box((0.75, 0, 0), (0.01, 0.03, 0.24), trim, (d.between(0, 90), 0)),
    ]
    return parts + [rod((0.10, s * 0.34, -0.07), 0.07, 0.15, trim, LYING_X) for s in (-1, 1)]


def submarine(d: Draw) -> Parts:
    parts = [
        ball((0, 0, 0), (0.28, 0.28, d.between(0.60, 0.70)), d.main, LYING_X),
        rod((0.05, 0, 0.30), (0.18, 0.12), 0.14, d.main),
        limb((0.08, 0, 0.42), (0.08, 0, 0.62), 0.03, STEEL),
        limb((0.08, 0, 0.62), (0.18, 0, 0.62), 0.03, STEEL),
        *(box((-0.60, 0, 0), half, d.main) for half in ((0.09, 0.26, 0.02), (0.09, 0.02, 0.26))),
    ]
    return parts + [
        rod((x, s * 0.245, 0.05), 0.075, 0.04, YELLOW, LYING_Y) for x in (-0.25, 0.05, 0.33) for s in (-1, 1)
    ]


VEHICLES = {
    "car": Composite(car, ANY, nouns=("toy car",)),
    "truck": Composite(truck, BRIGHT, nouns=("lorry",)),
    "train": Composite(train, ("red", "green", "blue", "black", "orange"), nouns=("toy train", "steam engine")),
    "rocket": Composite(rocket, BRIGHT, ("red",), ("space rocket", "rocket ship")),
    "boat": Composite(boat, BRIGHT, ("red", "blue", "brown"), ("sailing boat", "sailboat")),
    "airplane": Composite(airplane, BRIGHT, nouns=("plane", "toy plane")),
    "submarine": Composite(submarine, BRIGHT, ("yellow",)),
}
