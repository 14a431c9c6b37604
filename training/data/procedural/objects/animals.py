"""Animals."""

from training.data.procedural.objects.kind import BRIGHT, Composite, Draw
from training.data.procedural.palette import CREAM, DARK, ORANGE, PINK, WHITE, YELLOW, Rgb
from training.data.procedural.parts import LYING_X, LYING_Y, Parts, ball, box, cone, limb, painted
from training.data.procedural.shapes import STRIPES


def _eyes(x: float, y: float, z: float, radius: float, rgb: Rgb = DARK) -> Parts:
    return [ball((side * x, y, z), radius, rgb) for side in (-1, 1)]


def _bear(d: Draw, coat: Rgb, limbs: Rgb, ears: Rgb, muzzle: Rgb, belly: Rgb) -> Parts:
    """A sitting bear."""
    fat, head = d.between(0.42, 0.5), d.between(0.36, 0.42)
    parts = [
        ball((0, 0, 0), (fat, fat * 0.85, 0.48), coat),
        ball((0, -fat * 0.42, -0.02), (fat * 0.68, fat * 0.55, 0.34), belly),
        ball((0, -0.04, 0.72), (head * 1.08, head * 0.95, head), coat),
        ball((0, -head * 0.85, 0.64), (0.17, 0.14, 0.13), muzzle),
        ball((0, -head * 0.85 - 0.13, 0.70), 0.06, DARK),
        *_eyes(0.15, -head * 0.88, 0.80, 0.055),
    ]
    for side in (-1, 1):
        parts += [
            ball((side * 0.30, 0, 1.04), (0.15, 0.10, 0.15), ears),
            limb((side * 0.38, -0.05, 0.26), (side * 0.58, -0.30, -0.08), 0.13, limbs),
            limb((side * 0.26, -0.15, -0.38), (side * 0.40, -0.60, -0.38), 0.16, limbs),
        ]
    return parts


def teddy_bear(d: Draw) -> Parts:
    return _bear(d, d.main, d.main, d.main, CREAM, CREAM)


def panda(d: Draw) -> Parts:
    parts = _bear(d, WHITE, DARK, DARK, WHITE, WHITE)
    patches = [ball((side * 0.16, -0.31, 0.80), (0.11, 0.08, 0.13), DARK, (0, side * 20)) for side in (-1, 1)]
    shine = [ball((side * 0.15, -0.39, 0.82), 0.03, WHITE) for side in (-1, 1)]
    return parts + patches + shine


def frog(d: Draw) -> Parts:
    wide = d.between(0.52, 0.62)
    parts = [
        ball((0, 0.08, 0), (wide, 0.55, 0.36), d.main),
        ball((0, -0.22, 0.22), (0.46, 0.38, 0.27), d.main),
        ball((0, -0.28, -0.08), (0.40, 0.36, 0.24), CREAM),
        box((0, -0.57, 0.19), (0.22, 0.04, 0.015), DARK),
    ]
    for side in (-1, 1):
        parts += [
            ball((side * 0.26, -0.28, 0.50), 0.16, d.main),
            ball((side * 0.27, -0.39, 0.53), 0.10, WHITE),
            ball((side * 0.27, -0.46, 0.54), 0.06, DARK),
            ball((side * 0.56, 0.25, -0.10), (0.20, 0.36, 0.24), d.main),
            ball((side * 0.62, -0.18, -0.31), (0.17, 0.26, 0.06), d.main),
            limb((side * 0.36, -0.35, -0.05), (side * 0.42, -0.52, -0.30), 0.09, d.main),
            ball((side * 0.44, -0.62, -0.32), (0.15, 0.16, 0.05), d.main),
        ]
    return parts


def duck(d: Draw) -> Parts:
    """Seen from its side: the beak points to +x."""
    head = d.between(0.24, 0.29)
    return [
        ball((0, 0, 0), (0.55, 0.38, 0.34), d.main),
        ball((-0.50, 0, 0.18), (0.22, 0.20, 0.10), d.main, (0, 35)),
        ball((0.36, 0, 0.48), head, d.main),
        ball((0.28, 0, 0.22), (0.20, 0.19, 0.24), d.main),
        cone((0.36 + head + 0.06, 0, 0.44), (0.09, 0.14), 0.14, ORANGE, LYING_X),
        *(ball((0.46, side * head * 0.80, 0.56), 0.05, DARK) for side in (-1, 1)),
        *(ball((-0.08, side * 0.34, 0.05), (0.32, 0.09, 0.18), d.main, (0, 12)) for side in (-1, 1)),
    ]


def fish(d: Draw) -> Parts:
    """Seen from its side: the mouth points to +x."""
    fin = d.one_of(ORANGE, YELLOW, d.main, PINK)
    body = ball((0, 0, 0), (0.32, 0.20, d.between(0.55, 0.62)), d.main, LYING_X)
    if d.chance(0.4):
        body = painted(body, STRIPES, 7, WHITE)
    return [
        body,
        cone((-0.70, 0, 0), (0.34, 0.06), 0.24, fin, LYING_X),
        cone((-0.05, 0, 0.36), (0.26, 0.05), 0.14, fin),
        *(ball((0.34, side * 0.15, 0.08), 0.075, WHITE) for side in (-1, 1)),
        *(ball((0.36, side * 0.20, 0.08), 0.045, DARK) for side in (-1, 1)),
        *(cone((0.02, side * 0.24, -0.08), (0.12, 0.03), 0.16, fin, (side * 60, 0)) for side in (-1, 1)),
    ]


def penguin(d: Draw) -> Parts:
    tall = d.between(0.58, 0.68)
    parts = [
        ball((0, 0, 0), (0.42, 0.38, tall), DARK),
        ball((0, -0.14, -0.08), (0.32, 0.28, tall * 0.78), WHITE),
        ball((0, 0, tall * 0.85), (0.30, 0.28, 0.28), DARK),
        cone((0, -0.34, tall * 0.83), (0.08, 0.07), 0.12, ORANGE, LYING_Y),
    ]
    for side in (-1, 1):
        parts += [
            ball((side * 0.12, -0.235, tall * 0.95), 0.065, WHITE),
            ball((side * 0.12, -0.29, tall * 0.95), 0.035, DARK),
            ball((side * 0.44, 0, 0.02), (0.08, 0.18, 0.38), DARK, (0, -side * 18)),
            ball((side * 0.18, -0.18, -tall), (0.16, 0.24, 0.07), ORANGE),
        ]
    return parts


def bunny(d: Draw) -> Parts:
    ear = d.between(0.28, 0.38)
    parts = [
        ball((0, 0.05, 0), (0.36, 0.36, 0.42), d.main),
        ball((0, -0.20, -0.02), (0.22, 0.20, 0.28), WHITE),
        ball((0, -0.08, 0.55), (0.30, 0.28, 0.27), d.main),
        ball((0, -0.35, 0.48), (0.12, 0.08, 0.08), WHITE),
        ball((0, -0.42, 0.52), 0.04, PINK),
        ball((0, 0.42, -0.20), 0.13, WHITE),
        *_eyes(0.13, -0.31, 0.62, 0.05),
    ]
    for side in (-1, 1):
        parts += [
            ball((side * 0.15, 0, 0.75 + ear), (0.09, 0.06, ear), d.main, (0, side * 10)),
            ball((side * 0.15, -0.04, 0.75 + ear), (0.05, 0.04, ear * 0.8), PINK, (0, side * 10)),
            ball((side * 0.24, -0.25, -0.36), (0.13, 0.24, 0.10), d.main),
            limb((side * 0.26, -0.12, 0.15), (side * 0.20, -0.34, 0.0), 0.08, d.main),
        ]
    return parts


def pig(d: Draw) -> Parts:
    long = d.between(0.52, 0.62)
    parts = [
        ball((0, 0.10, 0), (0.42, long, 0.38), d.main),
        ball((0, -long + 0.08, 0.18), (0.32, 0.28, 0.30), d.main),
        ball((0, -long - 0.16, 0.13), (0.14, 0.10, 0.11), (0.92, 0.40, 0.55)),
        *_eyes(0.15, -long - 0.14, 0.28, 0.05),
        *_eyes(0.05, -long - 0.245, 0.13, 0.028),
    ]
    for side in (-1, 1):
        parts.append(cone((side * 0.22, -long + 0.02, 0.48), (0.11, 0.06), 0.13, (0.92, 0.40, 0.55), (0, side * 20)))
        parts += [limb((side * 0.22, y, -0.2), (side * 0.22, y, -0.46), 0.11, d.main) for y in (-0.2, 0.42)]
    return parts


ANIMALS = {
    "teddy bear": Composite(teddy_bear, ("brown", *BRIGHT, "white"), ("brown",), ("teddy",)),
    "panda": Composite(panda, nouns=("panda bear",)),
    "frog": Composite(frog, BRIGHT, ("green",)),
    "duck": Composite(duck, (*BRIGHT, "white"), ("yellow", "white"), ("rubber duck", "toy duck")),
    "fish": Composite(fish, BRIGHT, nouns=("toy fish",)),
    "penguin": Composite(penguin),
    "bunny": Composite(bunny, ("white", "grey", "brown", "pink", "blue"), ("white", "grey", "brown"), ("rabbit",)),
    "pig": Composite(pig, ("pink", "brown", "blue", "yellow"), ("pink",), ("piggy",)),
}
