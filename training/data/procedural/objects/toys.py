"""Toys and people."""

import math

from training.data.procedural.objects.kind import ANY, BRIGHT, Composite, Draw
from training.data.procedural.palette import DARK, GLASS, GOLD, LEAF, ORANGE, PALETTE, RED, STEEL, WHITE, YELLOW
from training.data.procedural.parts import (
    LYING_Y,
    Parts,
    ball,
    box,
    cone,
    frustum,
    limb,
    painted,
    ring,
    rod,
)
from training.data.procedural.shapes import SECTORS, STRIPES


def toy_robot(d: Draw) -> Parts:
    wide, head = d.between(0.30, 0.38), d.between(0.22, 0.28)
    eye = d.one_of(YELLOW, GLASS, RED)
    parts = [
        box((0, 0, 0), (wide, 0.22, 0.36), d.main),
        box((0, -0.21, 0.06), (wide * 0.6, 0.03, 0.15), STEEL),
        ball((-0.08, -0.24, 0.08), 0.05, RED),
        ball((0.08, -0.24, 0.08), 0.05, YELLOW),
        rod((0, 0, 0.40), 0.09, 0.08, STEEL),
        box((0, 0, 0.66), (head, 0.20, 0.20), d.main),
        box((0, -0.20, 0.56), (head * 0.55, 0.02, 0.03), DARK),
        rod((0, 0, 0.94), 0.025, 0.10, STEEL),
        ball((0, 0, 1.06), 0.06, RED),
    ]
    for side in (-1, 1):
        parts += [
            rod((side * head * 0.45, -0.20, 0.70), 0.065, 0.03, eye, LYING_Y),
            ball((side * (wide + 0.06), 0, 0.24), 0.11, STEEL),
            rod((side * (wide + 0.10), 0, -0.02), 0.07, 0.24, d.main),
            ball((side * (wide + 0.10), 0, -0.28), 0.10, STEEL),
            rod((side * 0.17, 0, -0.50), 0.09, 0.16, STEEL),
            box((side * 0.17, -0.06, -0.70), (0.14, 0.22, 0.07), d.main),
        ]
    return parts


def snowman(d: Draw) -> Parts:
    hat = d.one_of(DARK, DARK, PALETTE["blue"], PALETTE["purple"])
    top = d.between(0.24, 0.28)
    parts = [
        ball((0, 0, 0), 0.46, WHITE),
        ball((0, 0, 0.58), 0.34, WHITE),
        ball((0, 0, 1.04), top, WHITE),
        cone((0, -top - 0.12, 1.04), 0.06, 0.16, ORANGE, LYING_Y),
        rod((0, 0, 1.24), 0.30, 0.03, hat),
        rod((0, 0, 1.40), 0.19, 0.16, hat),
        ring((0, 0, 0.83), 0.30, 0.075, d.main),
        box((0.12, -0.33, 0.66), (0.06, 0.03, 0.17), d.main, (0, 8)),
        *(ball((0, -0.335, z), 0.045, DARK) for z in (0.62, 0.46)),
    ]
    for side in (-1, 1):
        parts.append(ball((side * 0.10, -top * 0.88, 1.12), 0.04, DARK))
        parts.append(limb((side * 0.28, 0, 0.65), (side * 0.68, -0.05, 0.85), 0.03, PALETTE["brown"]))
    return parts


def doll(d: Draw) -> Parts:
    """A little person with round head, in coloured clothes."""
    skin = d.one_of((0.96, 0.75, 0.58), (0.72, 0.48, 0.32), (0.45, 0.28, 0.18))
    hair = d.one_of(DARK, PALETTE["brown"], GOLD)
    trousers = d.one_of(PALETTE["blue"], DARK, PALETTE["brown"])
    skirt, head = d.between(0.24, 0.32), d.between(0.24, 0.29)
    parts = [
        frustum((0, 0, 0), skirt, 0.18, 0.30, d.main),
        ball((0, 0, 0.52), head, skin),
        ball((0, 0.05, 0.58), (head + 0.02, head, head - 0.01), hair),
    ]
    for side in (-1, 1):
        parts += [
            ball((side * 0.09, -head * 0.91, 0.54), 0.04, DARK),
            limb((side * 0.19, 0, 0.20), (side * 0.42, -0.05, -0.05), 0.07, d.main),
            ball((side * 0.44, -0.05, -0.09), 0.08, skin),
            limb((side * 0.12, 0, -0.25), (side * 0.13, 0, -0.62), 0.09, trousers),
            ball((side * 0.13, -0.07, -0.72), (0.11, 0.17, 0.08), DARK),
        ]
    return parts


def beach_ball(d: Draw) -> Parts:
    return [
        painted(ball((0, 0, 0), 0.5, d.main, (0, 25)), SECTORS, 6 if d.chance(0.5) else 8, WHITE),
        rod((0.21, 0, 0.45), 0.07, 0.012, WHITE, (0, 25)),
    ]


def sword(d: Draw) -> Parts:
    long = d.between(0.45, 0.58)
    return [
        box((0, 0, long), (0.13, 0.045, long), STEEL),
        cone((0, 0, 2 * long + 0.14), (0.13, 0.045), 0.14, STEEL),
        box((0, 0, -0.02), (0.36, 0.08, 0.065), GOLD),
        rod((0, 0, -0.24), 0.075, 0.19, d.main),
        ball((0, 0, -0.46), 0.12, GOLD),
    ]


def hat(d: Draw) -> Parts:
    tall = d.between(0.25, 0.4)
    return [
        rod((0, 0, 0), (0.62, 0.62), 0.035, d.main),
        frustum((0, 0, tall), 0.36, 0.38, tall, d.main),
        rod((0, 0, 0.12), 0.375, 0.07, d.one_of(DARK, WHITE, GOLD)),
    ]


def crown(d: Draw) -> Parts:
    points, tall = 8, d.between(0.14, 0.22)
    parts: Parts = [ring((0, 0, -0.22), 0.46, 0.05, GOLD), frustum((0, 0, 0), 0.42, 0.46, 0.20, GOLD)]
    for k in range(points):
        x, y = math.cos(2 * math.pi * k / points), math.sin(2 * math.pi * k / points)
        parts.append(cone((0.38 * x, 0.38 * y, 0.18 + tall), 0.12, tall, GOLD))
        parts.append(ball((0.44 * x, 0.44 * y, 0.02), 0.06, d.main))
    return parts


def spinning_top(d: Draw) -> Parts:
    wide = d.between(0.42, 0.54)
    body = painted(frustum((0, 0, 0.15), 0.24, wide, 0.16, d.main), STRIPES, 3, d.one_of(WHITE, YELLOW, LEAF))
    return [
        body,
        cone((0, 0, -0.28), 0.24, 0.26, d.main, (180, 0)),
        rod((0, 0, 0.45), 0.05, 0.16, STEEL),
        ball((0, 0, 0.62), 0.08, RED),
    ]


TOYS = {
    "toy robot": Composite(toy_robot, ANY, ("grey", "blue", "red"), ("robot",)),
    "snowman": Composite(snowman, (), ("red", "blue", "green")),
    "doll": Composite(doll, BRIGHT, nouns=("toy person",)),
    "beach ball": Composite(beach_ball, BRIGHT, symmetric=True),
    "sword": Composite(sword, (), ("brown", "red", "blue"), ("toy sword",)),
    "hat": Composite(hat, ANY, symmetric=True),
    "crown": Composite(crown, (), ("red", "blue", "purple"), ("golden crown",), symmetric=True),
    "spinning top": Composite(spinning_top, BRIGHT, symmetric=True),
}
