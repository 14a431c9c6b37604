"""How often the judges are right about true renders; printed beside every figure about generated objects."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from benchmarks.quality.colour import ColourRule
from benchmarks.quality.counts import is_counted
from benchmarks.quality.probe import ShapeProbe, seen_nouns
from benchmarks.quality.relations import is_arranged
from benchmarks.quality.silhouette import best_iou, silhouettes
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.objects import COMPOSITES

OTHER_RELATION = {"on top of": "next to", "next to": "on top of"}


class Calibration(NamedTuple):
    """Shares of true renders judged right; None if the grammar lacks the feature."""

    shape: float
    shape_by_noun: dict[str, float]
    shape_confusions: dict[str, int]  # "true -> seen": count
    colour: float  # plain objects with a colour that captions may give them
    colour_by_noun: dict[str, float]
    pattern: float | None
    relation: float | None
    counts: float | None
    relation_fooled: float | None  # true scenes accepted under the other relation, or "on top of" upside down
    silhouette_iou: float  # of true objects against other true ones

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def calibrate(
    probe: ShapeProbe,
    colours: ColourRule,
    outlines: Mapping[str, Tensor],
    singles: tuple[Tensor, Sequence[ObjectWords]],
    scenes: tuple[Tensor, Sequence[ObjectWords]],
    rows: tuple[Tensor, Sequence[ObjectWords]],
) -> Calibration:
    """Judge true objects [N, V, 4, S, S] that nothing was fitted to."""
    views, facts = singles
    seen = seen_nouns(probe, views, colours.nouns)
    right = [name == words.shape for name, words in zip(seen, facts, strict=True)]
    wrong = Counter(f"{words.shape} -> {name}" for name, words in zip(seen, facts, strict=True) if name != words.shape)
    told = [row for row, words in enumerate(facts) if words.pattern == "plain" and can_be_called(words)]
    marked = [row for row, words in enumerate(facts) if words.pattern != "plain"]
    coloured = [colours.is_right(views[row].float(), facts[row]) for row in told]
    patterned = [colours.is_right(views[row].float(), facts[row]) for row in marked]
    ious = [best_iou(silhouettes(one), outlines[words.shape]) for one, words in zip(views, facts, strict=True)]
    arranged, fooled = _judge_scenes(*scenes, colours.names)
    counted = [is_counted(one, words) for one, words in zip(*rows, strict=True)]
    return Calibration(
        shape=float(np.mean(right)),
        shape_by_noun=_by_noun([words.shape for words in facts], right),
        shape_confusions=dict(wrong.most_common()),
        colour=float(np.mean(coloured)),
        colour_by_noun=_by_noun([facts[row].shape for row in told], coloured),
        pattern=mean_or_none(patterned),
        relation=mean_or_none(arranged),
        counts=mean_or_none(counted),
        relation_fooled=mean_or_none(fooled),
        silhouette_iou=float(np.mean(ious)),
    )


def can_be_called(words: ObjectWords) -> bool:
    """Whether captions may give this noun this colour: nobody asks for a red panda."""
    return words.shape not in COMPOSITES or words.colour in COMPOSITES[words.shape].colours


def mean_or_none(values: Sequence[float]) -> float | None:
    """Mean, or None without values."""
    return float(np.mean(values)) if values else None


def _judge_scenes(views: Tensor, facts: Sequence[ObjectWords], names: tuple[str, ...]) -> tuple[list[bool], list[bool]]:
    arranged, fooled = [], []
    for one, words in zip(views, facts, strict=True):
        seen = one.float()
        arranged.append(is_arranged(seen, words, names))
        fooled.append(is_arranged(seen, words._replace(relation=OTHER_RELATION[words.relation]), names))
        if words.relation == "on top of":  # "next to" holds both ways
            turned = words._replace(colour=words.other_colour, other_colour=words.colour)
            fooled.append(is_arranged(seen, turned, names))
    return arranged, fooled


def _by_noun(nouns: Sequence[str], right: Sequence[bool]) -> dict[str, float]:
    groups: dict[str, list[bool]] = {}
    for noun, value in zip(nouns, right, strict=True):
        groups.setdefault(noun, []).append(value)
    return {noun: float(np.mean(values)) for noun, values in groups.items()}
