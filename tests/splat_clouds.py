"""Clouds like objects, and what each format may change of them."""

from typing import NamedTuple

import numpy as np
from diffsplat_client import SplatCloud


class Loss(NamedTuple):
    """The most that a format may change of one splat of `make_cloud`."""

    position: float = 1e-6  # world units
    rgb: float = 1e-6
    opacity: float = 1e-6
    log_scale: float = 2.1e-5  # of .ply's margin, for the smallest scale
    rotation_deg: float = 1e-4


LEVEL = 0.5 / 255 + 1e-6  # of one byte
SPZ_LOSS = Loss(position=0.5 / 4096 + 1e-6, rgb=1 / 255, opacity=LEVEL, log_scale=0.5 / 16 + 1e-5, rotation_deg=0.25)
LOSSES = {
    "ply": Loss(),
    "ply_compat": Loss(),
    "splat": Loss(position=0, rgb=LEVEL, opacity=LEVEL, log_scale=1e-6, rotation_deg=1),
    "spz": SPZ_LOSS,
    "spz4": SPZ_LOSS,
    "glb": Loss(log_scale=0),
    "usdz": Loss(log_scale=0),
    "sog": Loss(position=5e-5, rgb=1 / 255, opacity=LEVEL, log_scale=0.01, rotation_deg=1),
}


def make_cloud(count: int) -> SplatCloud:
    """Splats like those of an object: within a cube of edge 2, scales from 0.0005 to 0.05, colours in [0, 1]."""
    rng = np.random.default_rng(count)
    quats = rng.normal(size=(count, 4))
    return SplatCloud(
        positions=rng.uniform(-1, 1, (count, 3)),
        rgb=rng.uniform(0, 1, (count, 3)),
        opacity=rng.uniform(0.01, 0.99, count),
        scales=np.exp(rng.uniform(np.log(0.0005), np.log(0.05), (count, 3))),
        quats_wxyz=quats / np.linalg.norm(quats, axis=1, keepdims=True),
    )


def largest_loss(first: SplatCloud, second: SplatCloud) -> Loss:
    """Between the splats of two clouds, in whatever order."""
    second = in_order_of(first, second)
    if not len(first):
        return Loss(*[0.0] * 5)
    quats, others = first.quats_wxyz.astype(float), second.quats_wxyz
    apart = np.minimum(np.linalg.norm(quats - others, axis=1), np.linalg.norm(quats + others, axis=1))
    return Loss(
        position=float(np.abs(first.positions - second.positions).max()),
        rgb=float(np.abs(first.rgb - second.rgb).max()),
        opacity=float(np.abs(first.opacity - second.opacity).max()),
        log_scale=float(np.abs(np.log(first.scales) - np.log(second.scales)).max()),
        rotation_deg=float(np.rad2deg(4 * np.arcsin(apart / 2)).max()),
    )


def in_order_of(first: SplatCloud, second: SplatCloud) -> SplatCloud:
    """The splats of `second` next to those of `first`, each once: a format may reorder them."""
    assert len(first) == len(second)
    if not len(first):
        return second
    distances = np.linalg.norm(first.positions[:, None] - second.positions, axis=-1)
    nearest = distances.argmin(axis=1)
    assert np.unique(nearest).size == len(first), "two splats are next to the same one"
    return second[nearest]
