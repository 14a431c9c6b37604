"""Furniture and things around the house."""

from training.data.procedural.objects.kind import ANY, BRIGHT, Composite, Draw
from training.data.procedural.palette import CHOCOLATE, CREAM, DARK, GOLD, ORANGE, PALETTE, STEEL, WHITE, WOOD, YELLOW
from training.data.procedural.parts import (
    LYING_Y,
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
    wall,
)
from training.data.procedural.shapes import SECTORS, STRIPES


def chair(d: Draw) -> Parts:
    seat, tall = d.between(0.34, 0.40), d.between(0.40, 0.52)
    parts = [
        box((0, 0, 0), (seat, seat, 0.05), d.main),
        box((0, seat - 0.04, tall + 0.15), (seat, 0.04, tall * 0.62), d.main),
    ]
    for x in (-1, 1):
        parts.append(box((x * (seat - 0.05), seat - 0.04, 0.2), (0.045, 0.04, 0.25), d.main))
        parts += [box((x * (seat - 0.05), y * (seat - 0.05), -0.30), (0.05, 0.05, 0.28), d.main) for y in (-1, 1)]
    return parts


def table(d: Draw) -> Parts:
    x, y, tall = d.between(0.58, 0.68), d.between(0.38, 0.52), d.between(0.22, 0.30)
    legs = [
        box((s * (x - 0.09), t * (y - 0.09), -tall), (0.055, 0.055, tall), d.main) for s in (-1, 1) for t in (-1, 1)
    ]
    return [box((0, 0, 0.03), (x, y, 0.05), d.main), *legs]


def lamp(d: Draw) -> Parts:
    stand = d.one_of(STEEL, WOOD, DARK, GOLD)
    shade = d.between(0.36, 0.44)
    return [
        rod((0, 0, -0.58), 0.28, 0.04, stand),
        rod((0, 0, -0.15), 0.04, 0.42, stand),
        frustum((0, 0, 0.40), shade, shade * 0.55, 0.26, d.main),
    ]


def bed(d: Draw) -> Parts:
    """Seen from its foot; the pillow lies at the back."""
    wide, long = d.between(0.42, 0.5), 0.66
    frame = d.one_of(WOOD, PALETTE["brown"], WHITE)
    parts = [
        box((0, 0, 0), (wide, long, 0.08), frame),
        box((0, 0, 0.13), (wide * 0.95, long * 0.96, 0.09), WHITE),
        box((0, -long * 0.30, 0.16), (wide * 0.99, long * 0.68, 0.10), d.main),
        box((0, long, 0.18), (wide, 0.04, 0.34), frame),
        box((0, -long, 0.04), (wide, 0.04, 0.18), frame),
        ball((0, long * 0.68, 0.27), (wide * 0.62, 0.15, 0.08), WHITE),
    ]
    return parts + [
        box((s * (wide - 0.05), t * long, -0.14), (0.05, 0.05, 0.10), frame) for s in (-1, 1) for t in (-1, 1)
    ]


def sofa(d: Draw) -> Parts:
    wide = d.between(0.60, 0.72)
    parts = [
        box((0, 0, 0), (wide, 0.34, 0.14), d.main),
        box((0, 0.28, 0.28), (wide, 0.10, 0.26), d.main),
        *(box((s * wide * 0.46, -0.06, 0.17), (wide * 0.42, 0.27, 0.05), d.main) for s in (-1, 1)),
    ]
    for s in (-1, 1):
        parts += [box((s * wide, 0, 0.08), (0.09, 0.36, 0.22), d.main)]
        parts += [rod((s * wide * 0.9, y, -0.19), 0.045, 0.06, DARK) for y in (-0.26, 0.26)]
    return parts


def mug(d: Draw) -> Parts:
    radius, tall = d.between(0.32, 0.38), d.between(0.30, 0.40)
    drink = d.one_of(CHOCOLATE, CHOCOLATE, (0.75, 0.45, 0.15))
    return [
        ring((radius + 0.02, 0, 0), tall * 0.68, 0.075, d.main, LYING_Y),
        wall((0, 0, 0), radius, radius * 0.84, tall, d.main),
        rod((0, 0, -0.03), radius * 0.86, tall - 0.05, drink),  # ends above the floor's lower face
        rod((0, 0, -tall + 0.02), radius * 0.98, 0.02, d.main),
    ]


def book(d: Draw) -> Parts:
    """Lying, its spine to the left."""
    x, y, thick = d.between(0.40, 0.48), d.between(0.52, 0.60), d.between(0.09, 0.16)
    pages = painted(box((0.015, 0, 0), (x - 0.02, y - 0.03, thick), CREAM), STRIPES, 9, (0.80, 0.72, 0.55))
    return [
        pages,
        box((0, 0, thick), (x, y, 0.03), d.main),
        box((0, 0, -thick), (x, y, 0.03), d.main),
        box((-x, 0, 0), (0.03, y, thick + 0.03), d.main),
        box((0.03, y * 0.35, thick + 0.032), (x * 0.6, 0.09, 0.004), d.one_of(GOLD, CREAM, WHITE)),
    ]


def candle(d: Draw) -> Parts:
    tall = d.between(0.34, 0.5)
    return [
        rod((0, 0, -tall - 0.02), 0.36, 0.035, GOLD),
        rod((0, 0, 0), 0.17, tall, d.main),
        rod((0, 0, tall + 0.05), 0.015, 0.06, DARK),
        ball((0, 0, tall + 0.17), (0.075, 0.075, 0.10), ORANGE),
        cone((0, 0, tall + 0.28), 0.06, 0.09, YELLOW),
        ring((0.36, 0, -tall - 0.02), 0.10, 0.03, GOLD, LYING_Y),
    ]


def umbrella(d: Draw) -> Parts:
    wide = d.between(0.56, 0.66)
    return [
        painted(dome((0, 0, 0.1), (wide, wide, 0.38), d.main), SECTORS, 8, d.one_of(WHITE, d.main, d.main)),
        rod((0, 0, -0.18), 0.025, 0.40, DARK),
        ring((0.09, 0, -0.57), 0.115, 0.03, WOOD, LYING_Y),
        rod((0, 0, 0.52), 0.02, 0.06, DARK),
    ]


def clock(d: Draw) -> Parts:
    """An alarm clock with two bells."""
    deep, bell = d.between(0.11, 0.18), d.between(0.14, 0.18)
    parts = [
        rod((0, deep - 0.14, 0), 0.44, deep, d.main, LYING_Y),
        rod((0, -0.13, 0), 0.37, 0.03, WHITE, LYING_Y),
        box((0, -0.17, 0.11), (0.025, 0.01, 0.13), DARK),
        box((0.09, -0.17, 0), (0.10, 0.01, 0.025), DARK),
        *(
            box((0.31 * x, -0.165, 0.31 * z), (0.025, 0.005, 0.025), DARK)
            for x, z in ((1, 0), (-1, 0), (0, 1), (0, -1))
        ),
        ball((0, 0, 0.52), 0.05, STEEL),
    ]
    for s in (-1, 1):
        parts.append(dome((s * 0.26, 0, 0.42), bell, GOLD, (0, s * 28)))
        parts.append(limb((s * 0.24, 0, -0.36), (s * 0.34, 0, -0.50), 0.05, STEEL))
    return parts


def vase(d: Draw) -> Parts:
    """A vase with three flowers."""
    belly = d.between(0.25, 0.34)
    parts = [ball((0, 0, 0), (belly, belly, 0.34), d.main), frustum((0, 0, 0.38), 0.15, 0.22, 0.10, d.main)]
    parts.append(rod((0, 0, -0.30), 0.20, 0.06, d.main))
    bloom = d.one_of(PALETTE["pink"], PALETTE["red"], YELLOW)
    for x, y, z in ((-0.26, 0, 0.85), (0.02, -0.08, 0.98), (0.27, 0.05, 0.86)):
        parts += [limb((x * 0.3, y, 0.42), (x, y, z), 0.02, (0.13, 0.58, 0.18)), ball((x, y, z), 0.13, bloom)]
        parts.append(ball((x, y - 0.08, z + 0.04), 0.07, YELLOW if bloom != YELLOW else PALETTE["brown"]))
    return parts


HOUSEHOLD = {
    "chair": Composite(chair, ANY, ("brown",), ("wooden chair",)),
    "table": Composite(table, ANY, ("brown",), ("wooden table",), symmetric=False),
    "lamp": Composite(lamp, BRIGHT, nouns=("table lamp",), symmetric=True),
    "bed": Composite(bed, BRIGHT),
    "sofa": Composite(sofa, ANY, nouns=("couch",)),
    "mug": Composite(mug, ANY, nouns=("cup", "coffee mug", "coffee cup")),
    "book": Composite(book, ANY, ("red", "blue", "green", "brown")),
    "candle": Composite(candle, BRIGHT, ("red", "pink", "purple")),
    "umbrella": Composite(umbrella, BRIGHT),
    "clock": Composite(clock, BRIGHT, nouns=("alarm clock",)),
    "vase": Composite(vase, BRIGHT, nouns=("flower vase",)),
}
