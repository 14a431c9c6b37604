"""Verdicts on generated objects, and the figures computed from them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.calibration import mean_or_none
from benchmarks.quality.cases import Case
from benchmarks.quality.counts import is_counted
from benchmarks.quality.probe import seen_nouns
from benchmarks.quality.relations import is_arranged
from benchmarks.quality.ruler import Ruler
from benchmarks.quality.silhouette import best_iou, silhouettes
from benchmarks.quality.truth import on_white
from training.data.procedural.captions import plain_caption
from training.data.procedural.object_words import ObjectWords


class Verdict(NamedTuple):
    """The verdict on one generated object; None for what its prompt does not ask for."""

    case: Case
    noun: str | None  # what the probe sees; not for scenes and rows
    colour: bool | None  # the named colour, or both colours of a pattern, are there
    arranged: bool | None  # for scenes
    iou: float | None  # not for scenes and rows
    counted: bool | None = None  # for rows of two or three

    @property
    def shape(self) -> bool | None:
        """Whether the noun is the one asked for."""
        return None if self.noun is None else self.noun == self.case.words.shape

    @property
    def right(self) -> bool:
        """Everything that was asked for is there."""
        return all(part is not False for part in (self.shape, self.colour, self.arranged, self.counted))


def judge(cases: Sequence[Case], views: Tensor, ruler: Ruler) -> list[Verdict]:
    """Views [N, V, 4, S, S] of the cases' objects."""
    verdicts = []
    for case, seen, noun in zip(cases, views, seen_nouns(ruler.probe, views, ruler.nouns), strict=True):
        words = case.words
        if words.relation:
            verdicts.append(Verdict(case, None, None, is_arranged(seen, words, ruler.colours.names), None))
            continue
        colour = ruler.colours.is_right(seen, words) if words.colour else None
        if words.number:
            verdicts.append(Verdict(case, None, colour, None, None, is_counted(seen, words)))
            continue
        iou = best_iou(silhouettes(seen), ruler.outlines[words.shape])
        verdicts.append(Verdict(case, noun, colour, None, iou))
    return verdicts


def accuracies(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The figures of the single objects, held-out pairs, patterns and scenes."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.case.group, []).append(verdict)
    shapes, objects = groups.get("shape", []), groups.get("object", [])
    singles, held_out = shapes + objects, groups.get("held-out", [])
    plain = [v for v in singles if v.case.prompt == plain_caption(v.case.words)]
    reworded = [v for v in singles if v.case.prompt != plain_caption(v.case.words)]
    ious = [v.iou for v in singles + held_out if v.iou is not None]
    return {
        "requests": {group: len(members) for group, members in groups.items()},
        "colour_accuracy": _share([v.colour for v in singles]),
        "colour_accuracy_shapes": _share([v.colour for v in shapes]),
        "colour_accuracy_objects": _share([v.colour for v in objects]),
        "shape_accuracy": _share([v.shape for v in singles]),
        "shape_accuracy_shapes": _share([v.shape for v in shapes]),
        "shape_accuracy_objects": _share([v.shape for v in objects]),
        "shape_accuracy_plain_words": _share([v.shape for v in plain]),
        "shape_accuracy_other_words": _share([v.shape for v in reworded]),
        "heldout_accuracy": _share([v.right for v in held_out]),
        "heldout_colour": _share([v.colour for v in held_out]),
        "heldout_shape": _share([v.shape for v in held_out]),
        "pattern_accuracy": _share([v.right for v in groups.get("pattern", [])]),
        "relations_accuracy": _share([v.arranged for v in groups.get("relation", [])]),
        "count_accuracy": _share([v.right for v in groups.get("count", [])]),
        "silhouette_iou": mean_or_none(ious),
        "by_noun": _by_noun(singles + held_out),
    }


def seed_spread(
    verdicts: Sequence[Verdict], views: Tensor, true_views: Callable[[ObjectWords, int], Tensor]
) -> dict[str, float] | None:
    """How much the seed alone changes, over prompts asked with several seeds; None without such prompts.

    Args:
        verdicts: On N objects.
        views: [N, V, 4, S, S] of them.
        true_views: (words, number of objects M) -> [M, V, 4, S, S] of true objects of these words.

    Returns:
        Standard deviation over seeds of the share of right objects; the mean absolute difference, in [0, 1], of the
        views of two objects of one prompt; and the same of true objects of one prompt.
    """
    group = "spread" if any(verdict.case.group == "spread" for verdict in verdicts) else "shape"
    rows: dict[str, list[int]] = {}
    for row, verdict in enumerate(verdicts):
        if verdict.case.group == group:
            rows.setdefault(verdict.case.prompt, []).append(row)
    repeated = [same for same in rows.values() if len(same) > 1]
    if not repeated:
        return None
    by_seed: dict[int, list[bool]] = {}
    differences, true = [], []
    for same in repeated:
        differences.append(_mean_difference(views[same]))
        true.append(_mean_difference(true_views(verdicts[same[0]].case.words, len(same))))
        for row in same:
            by_seed.setdefault(verdicts[row].case.seed, []).append(verdicts[row].right)
    shares = [float(np.mean(right)) for right in by_seed.values()]
    return {
        "prompts": len(repeated),
        "seeds": len(by_seed),
        "accuracy_std": float(np.std(shares)),
        "image_difference": float(np.mean(differences)),
        "true_image_difference": float(np.mean(true)),
    }


def _mean_difference(views: Tensor) -> float:
    """Of all pairs of M objects, [M, V, 4, S, S]."""
    images = on_white(views.float())
    pairs = torch.combinations(torch.arange(len(views)))
    return float((images[pairs[:, 0]] - images[pairs[:, 1]]).abs().mean())


def confusions(verdicts: Sequence[Verdict]) -> dict[str, Counter[str]]:
    """Noun asked for -> the nouns seen instead, with counts; without scenes."""
    wrong: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        if verdict.noun is not None and not verdict.shape:
            wrong.setdefault(verdict.case.words.shape, Counter())[verdict.noun] += 1
    return wrong


def _share(values: Sequence[bool | None]) -> float | None:
    return mean_or_none([value for value in values if value is not None])


def _by_noun(verdicts: Sequence[Verdict]) -> dict[str, dict[str, float | None]]:
    nouns = dict.fromkeys(verdict.case.words.shape for verdict in verdicts)
    members = {noun: [v for v in verdicts if v.case.words.shape == noun] for noun in nouns}
    return {
        noun: {"shape": _share([v.shape for v in all_of]), "colour": _share([v.colour for v in all_of])}
        for noun, all_of in members.items()
    }
