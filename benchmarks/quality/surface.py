"""How clean the surface of an object is, from what it covers of its views.

    fuzz      hair, crumbs and pits: share of the outline that opening and closing change
    fringe    width of the half-transparent edge: 0.75 pixels where only sampling makes it

Axes: V views, S pixels of a side.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from benchmarks.quality.colour import OPAQUE

SURFACE_PX = 256  # side of the views that are judged
_REACH_PX = 4  # radius of what opening removes and closing fills
_CLEAR, _SOLID = 0.1, 0.9  # alphas between are half transparent


class Surface(NamedTuple):
    """Figures of one object, over all its views."""

    fuzz: float
    fringe_px: float


def surface(alphas: Tensor) -> Surface:
    """Judge the views [V, S, S] of an object; NaN for one that covers nothing."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _REACH_PX + 1,) * 2)
    covered = changed = half = 0
    outline = 0.0
    for alpha in np.pad(alphas.float().numpy(), ((0, 0), *((_REACH_PX + 1,) * 2,) * 2)):
        solid = (alpha > OPAQUE).astype(np.uint8)
        opened, closed = (cv2.morphologyEx(solid, kind, disc) for kind in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE))
        covered += int(solid.sum())
        changed += int(((opened != solid) | (closed != solid)).sum())
        half += int(((alpha > _CLEAR) & (alpha < _SOLID)).sum())
        outline += _outline_px(solid)
    if not covered:
        return Surface(math.nan, math.nan)
    return Surface(changed / covered, half / outline)


def mean_surface(surfaces: Sequence[Surface]) -> dict[str, float | None]:
    """Means over the objects that cover anything, by name."""
    seen = np.array([one for one in surfaces if not math.isnan(one.fuzz)])
    return {name: float(seen[:, k].mean()) if len(seen) else None for k, name in enumerate(Surface._fields)}


def _outline_px(solid: np.ndarray) -> float:
    """Length of all outlines of a mask, those of holes too."""
    contours, _ = cv2.findContours(solid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return sum(cv2.arcLength(contour, closed=True) for contour in contours) or 1.0
