"""Things to eat."""

import math

from training.data.procedural.objects.kind import Composite, Draw
from training.data.procedural.palette import BARK, CHOCOLATE, CREAM, DOUGH, LEAF, PALETTE, PINK, RED, WHITE, YELLOW
from training.data.procedural.parts import Parts, ball, box, cone, dome, frustum, limb, painted, ring, rod
from training.data.procedural.shapes import STRIPES


def _scattered(d: Draw, count: int, reach: float) -> list[tuple[float, float]]:
    """Spread points on a disc: a sunflower spiral with a random turn."""
    turn = d.between(0, 2 * math.pi)
    radii = [reach * math.sqrt((k + 0.5) / count) for k in range(count)]
    return [(r * math.cos(turn + 2.4 * k), r * math.sin(turn + 2.4 * k)) for k, r in enumerate(radii)]


def cookie(d: Draw) -> Parts:
    """Lying, slightly leaning to the viewer, with chocolate chips."""
    thick = d.between(0.07, 0.10)
    parts: Parts = [rod((0, 0, 0), 0.46, thick * 0.7, DOUGH), ball((0, 0, 0), (0.50, 0.50, thick * 1.35), DOUGH)]
    for x, y in _scattered(d, 13, 0.42):
        z = thick * 1.3 * math.sqrt(1 - (x * x + y * y) / 0.26)
        parts += [ball((x, y, s * z), (0.062, 0.062, 0.045), CHOCOLATE) for s in (-1, 1)]
    return parts


def cupcake(d: Draw) -> Parts:
    wrap = d.one_of(PALETTE["blue"], PALETTE["purple"], CHOCOLATE, PALETTE["red"])
    foot = d.between(0.24, 0.32)
    return [
        frustum((0, 0, -0.22), foot, 0.38, 0.24, wrap),
        ball((0, 0, 0.08), (0.46, 0.46, 0.20), d.main),
        ball((0, 0, 0.26), (0.35, 0.35, 0.18), d.main),
        cone((0, 0, 0.50), 0.26, 0.20, d.main),
        ball((0, 0, 0.68), 0.11, RED),
    ]


def donut(d: Draw) -> Parts:
    thick = d.between(0.17, 0.20)
    parts = [ring((0, 0, 0), 0.52, thick, DOUGH), ring((0, 0, 0.05), 0.51, thick * 0.92, d.main)]
    centre = 0.52 - thick
    for k in range(12):
        a, off = 2 * math.pi * k / 12, (0.06 if k % 2 else -0.06)
        x, y = (centre + off) * math.cos(a), (centre + off) * math.sin(a)
        parts.append(ball((x, y, 0.05 + thick * 0.88), 0.035, (RED, YELLOW, WHITE, PALETTE["blue"])[k % 4]))
    return parts


def ice_cream(d: Draw) -> Parts:
    scoops = [d.main, d.one_of(CREAM, CHOCOLATE, PINK)] if d.chance(0.5) else [d.main]
    parts = [painted(cone((0, 0, -0.42), 0.27, 0.45, DOUGH, (180, 0)), STRIPES, 9, (0.72, 0.50, 0.24))]
    parts += [ball((0, 0, 0.12 + 0.34 * k), 0.30 - 0.03 * k, rgb) for k, rgb in enumerate(scoops)]
    return parts + [ball((0, 0, 0.34 * len(scoops) + 0.12), 0.08, RED)]


def apple(d: Draw) -> Parts:
    tall = d.between(0.38, 0.44)
    return [
        *(ball((s * 0.12, 0, 0.0), (0.36, 0.42, tall), d.main) for s in (-1, 1)),
        limb((0, 0, 0.36), (0.06, 0, 0.58), 0.03, BARK),
        ball((0.20, 0, 0.54), (0.16, 0.07, 0.03), LEAF, (0, -25)),
    ]


def carrot(d: Draw) -> Parts:
    tall = d.between(0.5, 0.6)
    leaves = [
        limb((0, 0, tall), (0.22 * x, 0.22 * y, tall + 0.38), 0.05, LEAF) for x, y in ((-1, 0), (1, 0), (0, 1), (0, -1))
    ]
    body = cone((0, 0, 0), 0.22, tall, PALETTE["orange"], (180, 0))
    return [
        body,
        dome((0, 0, tall), (0.22, 0.22, 0.08), PALETTE["orange"]),
        limb((0, 0, tall), (0, 0, tall + 0.45), 0.06, LEAF),
        *leaves,
    ]


def cake(d: Draw) -> Parts:
    """Two layers with candles."""
    upper = d.between(0.28, 0.38)
    parts = [
        rod((0, 0, -0.36), 0.62, 0.03, WHITE),
        rod((0, 0, -0.16), 0.50, 0.18, d.main),
        rod((0, 0, 0.03), 0.505, 0.035, CREAM),
        rod((0, 0, 0.18), upper, 0.14, d.main),
        rod((0, 0, 0.32), upper + 0.005, 0.03, CREAM),
    ]
    for k in range(5):
        x, y = 0.2 * math.cos(1.257 * k), 0.2 * math.sin(1.257 * k)
        parts += [rod((x, y, 0.43), 0.03, 0.10, RED), ball((x, y, 0.57), (0.03, 0.03, 0.05), YELLOW)]
    return parts


def burger(d: Draw) -> Parts:
    return [
        rod((0, 0, -0.20), 0.46, 0.08, DOUGH),
        rod((0, 0, -0.08), 0.53, 0.03, LEAF),
        rod((0, 0, 0.00), 0.49, 0.06, CHOCOLATE),
        box((0, 0, 0.065), (0.41, 0.41, 0.012), YELLOW, yaw=d.between(0, 90)),
        rod((0, 0, 0.10), 0.47, 0.03, RED),
        dome((0, 0, 0.12), (0.49, 0.49, d.between(0.28, 0.36)), DOUGH),
    ]


FOOD = {
    "cookie": Composite(cookie, nouns=("chocolate chip cookie", "biscuit"), symmetric=True),
    "cupcake": Composite(
        cupcake, ("pink", "blue", "yellow", "purple", "green", "brown"), ("pink",), ("muffin",), symmetric=True
    ),
    "donut": Composite(
        donut, ("pink", "brown", "blue", "yellow", "purple"), ("pink", "brown"), ("doughnut",), symmetric=True
    ),
    "ice cream": Composite(
        ice_cream, ("pink", "brown", "green", "yellow", "blue"), ("pink",), ("ice cream cone",), symmetric=True
    ),
    "apple": Composite(apple, ("red", "green", "yellow"), ("red",)),
    "carrot": Composite(carrot, symmetric=True),
    "cake": Composite(cake, ("pink", "brown", "blue", "yellow"), ("pink", "brown"), ("birthday cake",), symmetric=True),
    "burger": Composite(burger, nouns=("hamburger", "cheeseburger"), symmetric=True),
}
