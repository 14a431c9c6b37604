"""Plants and buildings."""

import math

from training.data.procedural.objects.kind import BRIGHT, Composite, Draw
from training.data.procedural.palette import BARK, CREAM, DARK, GLASS, LEAF, PALETTE, WHITE, WOOD, YELLOW
from training.data.procedural.parts import (
    Parts,
    ball,
    box,
    cone,
    dome,
    frustum,
    limb,
    painted,
    ring,
    rod,
    roof,
)
from training.data.procedural.shapes import STRIPES


def tree(d: Draw) -> Parts:
    """Round crown of a few balls; sometimes with apples."""
    trunk = d.between(0.24, 0.34)
    parts = [rod((0, 0, -trunk), 0.10, trunk, BARK), ball((0, 0, 0.34), (0.44, 0.44, 0.40), LEAF)]
    turn, count = d.between(0, 6.28), 5
    for k in range(count):
        a = turn + 2 * math.pi * k / count
        parts.append(ball((0.30 * math.cos(a), 0.30 * math.sin(a), 0.24 + 0.1 * (k % 2)), d.between(0.22, 0.28), LEAF))
    if d.chance(0.3):
        for k in range(9):
            a, z = turn + 2.4 * k, 0.15 + 0.06 * k
            reach = 0.45 - 0.35 * abs(z - 0.28)
            parts.append(ball((reach * math.cos(a), reach * math.sin(a), z), 0.055, PALETTE["red"]))
    return parts


def pine_tree(d: Draw) -> Parts:
    wide = d.between(0.42, 0.5)
    dark = (0.08, 0.45, 0.20)
    parts = [rod((0, 0, -0.62), 0.10, 0.18, BARK)]
    return parts + [cone((0, 0, -0.2 + 0.34 * k), wide * (1 - 0.22 * k), 0.30, dark) for k in range(3)]


def flower(d: Draw) -> Parts:
    """One bloom facing the viewer on a stem with two leaves."""
    petals, wide = (5, 6, 7)[int(d.between(0, 3))], d.between(0.13, 0.17)
    heart = YELLOW if d.main != YELLOW else PALETTE["brown"]
    parts = [limb((0, 0.05, -0.75), (0, 0.05, 0.25), 0.035, LEAF), ball((0, -0.06, 0.35), (0.15, 0.10, 0.15), heart)]
    for k in range(petals):
        a = 2 * math.pi * k / petals
        parts.append(ball((0.25 * math.cos(a), 0.0, 0.35 + 0.25 * math.sin(a)), (wide, 0.05, wide), d.main))
    parts += [ball((s * 0.18, 0.05, -0.42), (0.20, 0.08, 0.06), LEAF, (0, -s * 35)) for s in (-1, 1)]
    return parts


def mushroom(d: Draw) -> Parts:
    wide, tall = d.between(0.46, 0.56), d.between(0.22, 0.30)
    cap = (wide, wide, wide * 0.75)
    parts = [frustum((0, 0, -tall + 0.02), 0.20, 0.15, tall, CREAM), dome((0, 0, 0), cap, d.main)]
    turn = d.between(0, 6.28)
    for count, polar, radius in ((1, 0.0, 0.10), (5, 0.75, 0.085), (8, 1.25, 0.07)):
        for k in range(count):
            a = turn + 2 * math.pi * k / count
            x, y, z = math.sin(polar) * math.cos(a), math.sin(polar) * math.sin(a), math.cos(polar)
            parts.append(ball((cap[0] * x, cap[1] * y, cap[2] * z), radius, WHITE))
    return parts


def cactus(d: Draw) -> Parts:
    pot = (0.72, 0.36, 0.20)
    green = (0.16, 0.55, 0.25)
    tall = d.between(0.5, 0.65)
    parts = [frustum((0, 0, -0.42), 0.22, 0.32, 0.20, pot), limb((0, 0, -0.3), (0, 0, tall), 0.17, green)]
    for s, z in ((-1, d.between(0.0, 0.15)), (1, d.between(0.1, 0.25))):
        parts += [
            limb((0, 0, z), (s * 0.36, 0, z), 0.09, green),
            limb((s * 0.36, 0, z), (s * 0.36, 0, z + 0.28), 0.09, green),
        ]
    return parts + [ball((0, 0, tall + 0.18), 0.07, PALETTE["pink"])]


def house(d: Draw) -> Parts:
    """Gable to the left and right; door and windows in front. The main colour is the roof's."""
    wide, deep, tall = d.between(0.48, 0.58), d.between(0.36, 0.44), d.between(0.28, 0.34)
    walls = d.one_of(CREAM, (0.90, 0.82, 0.62), (0.80, 0.72, 0.62), (0.85, 0.60, 0.45))
    parts = [
        box((0, 0, 0), (wide, deep, tall), walls),
        roof((0, 0, tall + 0.22), (deep + 0.08, wide + 0.08, 0.22), d.main, yaw=90),
        box((0, -deep, -tall + 0.19), (0.10, 0.02, 0.19), PALETTE["brown"]),
        box((wide * 0.55, 0.08, tall + 0.38), (0.07, 0.07, 0.17), (0.60, 0.30, 0.22)),
    ]
    for s in (-1, 1):
        parts.append(box((s * wide * 0.60, -deep, 0.03), (0.115, 0.015, 0.115), WHITE))
        parts.append(box((s * wide * 0.60, -deep - 0.01, 0.03), (0.09, 0.015, 0.09), GLASS))
        parts.append(box((s * wide, 0, 0.03), (0.015, 0.12, 0.10), GLASS))
    return parts


def castle(d: Draw) -> Parts:
    stone = d.one_of((0.62, 0.60, 0.58), (0.75, 0.68, 0.55))
    keep, roof_half = d.between(0.16, 0.30), d.between(0.14, 0.20)
    parts = [
        box((0, 0, -0.05), (0.42, 0.42, 0.28), stone),
        box((0, -0.42, -0.17), (0.11, 0.02, 0.16), DARK),
        rod((0, 0, 0.16 + keep), 0.16, keep, stone),
        cone((0, 0, 0.16 + 2 * keep + roof_half), 0.22, roof_half, d.main),
    ]
    for x in (-1, 1):
        for y in (-1, 1):
            parts += [
                rod((x * 0.42, y * 0.42, 0.03), 0.15, 0.36, stone),
                cone((x * 0.42, y * 0.42, 0.39 + roof_half), 0.20, roof_half, d.main),
            ]
    return parts


def lighthouse(d: Draw) -> Parts:
    foot = d.between(0.24, 0.32)
    tower = painted(frustum((0, 0, 0), foot, 0.16, 0.55, d.main), STRIPES, 5, WHITE)
    return [
        tower,
        rod((0, 0, -0.60), foot + 0.10, 0.06, (0.5, 0.48, 0.45)),
        rod((0, 0, 0.57), 0.23, 0.03, DARK),
        rod((0, 0, 0.69), 0.12, 0.10, YELLOW),
        cone((0, 0, 0.90), 0.19, 0.12, d.main),
    ]


def barrel(d: Draw) -> Parts:
    tall = d.between(0.42, 0.5)
    parts: Parts = [
        frustum((0, 0, s * tall / 2), *((0.40, 0.31) if s > 0 else (0.31, 0.40)), tall / 2, WOOD) for s in (-1, 1)
    ]
    parts += [ring((0, 0, z * tall), 0.415 - 0.05 * abs(z) / 0.6, 0.03, DARK, flat=1.3) for z in (-0.6, 0.6)]
    return parts


OUTDOORS = {
    "tree": Composite(tree, (), ("green",), symmetric=True),
    "pine tree": Composite(pine_tree, (), ("green",), ("christmas tree", "fir tree"), symmetric=True),
    "flower": Composite(flower, BRIGHT, ("red", "pink", "yellow", "purple", "orange")),
    "mushroom": Composite(mushroom, BRIGHT, ("red",), ("toadstool",), symmetric=True),
    "cactus": Composite(cactus, nouns=("potted cactus",)),
    "house": Composite(house, (), ("red", "blue", "brown", "green"), ("cottage",)),
    "castle": Composite(castle, (), ("red", "blue", "purple"), ("toy castle",)),
    "lighthouse": Composite(lighthouse, ("red", "blue", "green", "orange", "black"), ("red",), symmetric=True),
    "barrel": Composite(barrel, nouns=("wooden barrel",), symmetric=True),
}
