"""The splats themselves: how many are drawn, how thin they are, and which pixels have none.

Axes: N splats, V views.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from diffsplat_client.contract import GAUSSIAN_COLUMNS
from torch import Tensor

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from diffsplat.geometry.gaussians import GRID_LAYOUT

VISIBLE = 1 / 255  # opacity below which a splat is not drawn


class Splats(NamedTuple):
    """Figures of the visible splats of one object."""

    visible: float  # how many there are
    scale_ratio: float  # median of largest over smallest scale
    smallest_px: float  # median of the smallest scale, in pixels of the splat grid's images


def splat_figures(gaussians: Tensor, distance: float, side: int) -> Splats:
    """Of [N, 14] with columns `GAUSSIAN_COLUMNS`, seen from `distance` in images of `side` pixels."""
    visible = (gaussians[:, GAUSSIAN_COLUMNS["opacity"]] >= VISIBLE)[:, 0]
    scales = gaussians[visible][:, GAUSSIAN_COLUMNS["scale"]]
    if not len(scales):
        return Splats(0, 0.0, 0.0)
    largest, smallest = scales.amax(dim=1), scales.amin(dim=1)
    pixels = side * DIFFSPLAT_FOCAL / distance
    return Splats(len(scales), float((largest / smallest).median()), float(smallest.median()) * pixels)


def dead_share(grids: Tensor, alphas: Tensor) -> float:
    """Share of solid pixels whose splat is not drawn: grids [..., 12, H, W] in [-1, 1], alphas [..., 1, H, W]."""
    opacity = 0.5 * grids[..., GRID_LAYOUT["opacity"], :, :] + 0.5
    return float((opacity < VISIBLE)[alphas == 1.0].float().mean())


def mean_figures(figures: Sequence[Splats]) -> dict[str, float]:
    """Medians over objects, by name."""
    return {name: float(np.median([one[k] for one in figures])) for k, name in enumerate(Splats._fields)}
