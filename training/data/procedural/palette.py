"""Colours by name, and the materials of those parts of composite objects that do not take the main colour."""

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[float, float, float]

# The six hues of the basic grammar: at least 45 degrees apart; shading multiplies a colour and keeps its hue.
COLOURS: dict[str, Rgb] = {
    "red": (0.90, 0.12, 0.10),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.12, 0.25, 0.92),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.60, 0.15, 0.80),
    "cyan": (0.10, 0.80, 0.85),
}
# Names at least 24 apart in CIE L*a*b* at the mean shade, at which all are far from the white background.
PALETTE: dict[str, Rgb] = {
    **COLOURS,
    "orange": (1.00, 0.50, 0.05),
    "brown": (0.42, 0.23, 0.10),
    "pink": (1.00, 0.58, 0.75),
    "black": (0.09, 0.09, 0.10),
    "grey": (0.55, 0.55, 0.56),
    "magenta": (0.90, 0.08, 0.55),
    "white": (0.90, 0.90, 0.88),
}
MEAN_SHADE = 0.725  # mean of the renderer's light over a sphere: ambient 0.45 and half of the rest

WHITE = PALETTE["white"]
CREAM: Rgb = (0.95, 0.86, 0.66)
DARK: Rgb = (0.10, 0.10, 0.11)
STEEL: Rgb = (0.66, 0.68, 0.72)
GLASS: Rgb = (0.55, 0.80, 0.95)
WOOD: Rgb = (0.58, 0.37, 0.18)
BARK: Rgb = (0.42, 0.26, 0.12)
LEAF: Rgb = (0.13, 0.58, 0.18)
DOUGH: Rgb = (0.85, 0.62, 0.33)
CHOCOLATE: Rgb = (0.30, 0.16, 0.08)
GOLD: Rgb = (0.92, 0.70, 0.15)
ORANGE = PALETTE["orange"]
RED = PALETTE["red"]
YELLOW = PALETTE["yellow"]
PINK = PALETTE["pink"]


def nearest_colour(rgb: NDArray[np.floating], names: tuple[str, ...] = tuple(PALETTE)) -> str:
    """The named colour nearest to a mean foreground colour, by RGB distance at the mean shade.

    Direction alone would not separate brown from orange or black from grey.

    Args:
        rgb: [3] in [0, 1], without background.
        names: Keys of `PALETTE` to choose from.
    """
    shaded = MEAN_SHADE * np.array([PALETTE[name] for name in names])
    return names[int(np.linalg.norm(shaded - np.asarray(rgb), axis=1).argmin())]
