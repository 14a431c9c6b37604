"""Whether a prompt for two or three objects makes as many: outlines apart from each other in the front view."""

import cv2
import numpy as np
from torch import Tensor

from benchmarks.quality.silhouette import silhouettes
from training.data.procedural.grammar import COUNTS
from training.data.procedural.object_words import ObjectWords

_WHOLE = 0.25  # outlines of less than this share of the largest one are crumbs
_THIN_PX = 1.5  # radius, at 64 px, of bridges between outlines that do not count


def count_apart(views: Tensor) -> int:
    """Objects that stand apart in the front view of [V, 4, S, S]."""
    solid = silhouettes(views)[0].numpy().astype(np.uint8)
    reach = max(round(_THIN_PX * len(solid) / 64), 1)
    cut = cv2.morphologyEx(solid, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2))
    _, _, stats, _ = cv2.connectedComponentsWithStats(cut)
    areas = stats[1:, cv2.CC_STAT_AREA]  # row 0 is the background
    return int((areas >= _WHOLE * areas.max(initial=1)).sum())


def is_counted(views: Tensor, words: ObjectWords) -> bool:
    """Whether one row of objects [V, 4, S, S] has as many as its words say."""
    return count_apart(views) == COUNTS[words.number]
