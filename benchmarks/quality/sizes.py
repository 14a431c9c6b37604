"""Whether "small" and "large" in a prompt change the size of the object: the area that its outline covers.

Axes: N objects, V views, S pixels of a side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from benchmarks.quality.calibration import mean_or_none
from benchmarks.quality.cases import Case
from benchmarks.quality.silhouette import silhouettes
from benchmarks.quality.truth import render_true, true_object
from diffsplat.backbones import BackboneSpec
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.synthetic_config import SyntheticConfig

_FITTED, _TRIED = 400_000, 400_001  # numbers of true instances: the yardstick, and those it is tried on


class SizeFigures(NamedTuple):
    """Shares of the image that small and large shapes cover, means over shapes and views."""

    small: float
    large: float
    true_small: float
    true_large: float
    accuracy: float  # share of objects whose area is nearer to the size asked for than to the other
    true_accuracy: float  # the same for true objects
    by_shape: dict[str, float]  # area of large over area of small ones, divided by that of true ones


def covered_area(views: Tensor) -> list[float]:
    """[N, V, 4, S, S] -> the share of all pixels that each object covers."""
    return silhouettes(views).float().mean(dim=(1, 2, 3)).tolist()


def judge_sizes(
    cases: Sequence[Case], views: Tensor, config: SyntheticConfig, spec: BackboneSpec
) -> SizeFigures | None:
    """Compare small and large shapes with true ones; None if the cases hold no group "size".

    Args:
        cases: N requests.
        views: [N, V, 4, S, S] of their objects.
        config: what true objects are made of.
        spec: the bundle's, for its cameras.
    """
    rows = [row for row, case in enumerate(cases) if case.group == "size"]
    if not rows:
        return None
    facts = [cases[row].words for row in rows]
    pixels = views.shape[-1]
    true = covered_area(render_true([true_object(words, _FITTED, config) for words in facts], spec, pixels))
    tried = covered_area(render_true([true_object(words, _TRIED, config) for words in facts], spec, pixels))
    made = covered_area(views[rows])
    yardstick = dict(zip(facts, true, strict=True))

    def share_right(areas: Sequence[float]) -> float:
        right = [_nearest_size(words, area, yardstick) == words.size for words, area in zip(facts, areas, strict=True)]
        return mean_or_none(right) or 0.0

    def mean(areas: Sequence[float], size: str) -> float:
        return mean_or_none([area for words, area in zip(facts, areas, strict=True) if words.size == size]) or 0.0

    return SizeFigures(
        mean(made, "small"), mean(made, "large"), mean(true, "small"), mean(true, "large"),
        share_right(made), share_right(tried), _ratios(facts, made, true),
    )  # fmt: skip


def _ratios(facts: Sequence[ObjectWords], made: Sequence[float], true: Sequence[float]) -> dict[str, float]:
    """Shape -> its size ratio over the true one; shapes that cover nothing when small are left out."""
    areas: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for words, pair in zip(facts, zip(made, true, strict=True), strict=True):
        areas.setdefault((words.shape, words.size), []).append(pair)
    mean = {key: np.mean(pairs, axis=0) for key, pairs in areas.items()}
    shapes = [shape for shape, size in mean if size == "large" and mean[shape, "small"].all()]
    ratios = {shape: mean[shape, "large"] / mean[shape, "small"] for shape in shapes}  # made, true
    return {shape: float(of_made / of_true) for shape, (of_made, of_true) in ratios.items()}


def _nearest_size(words: ObjectWords, area: float, yardstick: dict[ObjectWords, float]) -> str:
    return min(("small", "large"), key=lambda size: abs(yardstick[words._replace(size=size)] - area))
