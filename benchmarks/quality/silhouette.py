"""Outlines of generated objects compared with those of true ones.

A caption leaves proportions, yaw and often size open. So an object is compared with several true instances of its noun
in all sizes, and the best overlap counts. True objects compared with each other in the same way give the ceiling.

Axes: N objects, R true instances, V views, S pixels of a side.
"""

import torch
from torch import Tensor

from benchmarks.quality.colour import OPAQUE


def silhouettes(views: Tensor) -> Tensor:
    """[..., V, 4, S, S] -> bool [..., V, S, S]."""
    return views[..., 3, :, :] > OPAQUE


def best_iou(outline: Tensor, true_outlines: Tensor) -> float:
    """Intersection over union, pooled over all views, with the best fitting instance: [V, S, S], [R, V, S, S]."""
    both = (outline & true_outlines).sum(dim=(1, 2, 3))
    either = (outline | true_outlines).sum(dim=(1, 2, 3)).clamp_min(1)
    return float(torch.max(both / either))
