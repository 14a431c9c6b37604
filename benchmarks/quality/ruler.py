"""All judges, fitted to true renders, and their accuracy on other true renders.

Axes: N objects, R instances of one noun, V views, S pixels of a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.calibration import Calibration, calibrate
from benchmarks.quality.colour import ColourRule, fit_colour_rule
from benchmarks.quality.probe import LabelledViews, ShapeProbe, train_probe
from benchmarks.quality.progress import Advance
from benchmarks.quality.silhouette import silhouettes
from benchmarks.quality.truth import EVALUATION_SEED, nouns_of, render_true, true_instances, true_object, words_of
from diffsplat.backbones import BackboneSpec
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.objects import COMPOSITES
from training.data.procedural.scenes import draw_words
from training.data.procedural.solids import SIZES
from training.data.procedural.synthetic_config import SyntheticConfig

_TRAIN_FIRST, _TEST_FIRST, _OUTLINES_FIRST = 0, 100_000, 200_000  # numbers of instances; disjoint
_PATTERN_SHARE = 0.2  # of the single shapes shown to the probe, where there are patterns
_FACTS_STREAM, _SCENE_STREAM = 31, 32


class RulerSize(NamedTuple):
    """How many true objects."""

    train: int  # per noun and colour
    test: int  # per noun and colour
    scenes: int  # two-shape scenes that try the rule of relations, and as many rows of objects that try counting
    outlines: int  # instances per noun; more where yaw is free
    epochs: int  # of the probe


RULER_SIZES = {"basic": RulerSize(36, 12, 0, 24, 12), "rich": RulerSize(3, 1, 120, 9, 8)}  # by grammar


@dataclass(frozen=True)
class Ruler:
    """Probe, colour rule, true outlines, and their accuracy."""

    probe: ShapeProbe
    colours: ColourRule
    outlines: dict[str, Tensor]  # noun -> bool [R, V, S, S]
    calibration: Calibration

    @property
    def nouns(self) -> tuple[str, ...]:
        """The nouns that the probe distinguishes."""
        return self.colours.nouns


def ruler_phases(config: SyntheticConfig, size: RulerSize) -> dict[str, int]:
    """Phases of `build_ruler` and their steps, for a progress bar."""
    nouns = len(nouns_of(config))
    drawn = sum(size.scenes for kind in (1, 3) if config.kind_weights[kind])
    objects = nouns * len(config.colours) * (size.train + size.test) + drawn
    return {"true objects": objects, "shape probe": size.epochs}


def build_ruler(
    config: SyntheticConfig, spec: BackboneSpec, pixels: int, size: RulerSize, rendered: Advance, epoch_done: Advance
) -> Ruler:
    """Fit and try the judges; `rendered` is called per true object, `epoch_done` per epoch of the probe."""
    nouns = nouns_of(config)

    def views_of(facts: Sequence[ObjectWords], first: int) -> Tensor:
        seen = []
        for row, words in enumerate(facts):
            # a block of the basic series holds one object of each kind, so a whole round of pairs comes from one block
            number = first + (row if config.grammar == "rich" else row // (len(nouns) * len(config.colours)))
            seen.append(render_true([true_object(words, number, config)], spec, pixels)[0].half())
            rendered()
        return torch.stack(seen) if seen else torch.zeros(0, spec.geometry.views, 4, pixels, pixels)

    train, test = _single_facts(config, size.train, _TRAIN_FIRST), _single_facts(config, size.test, _TEST_FIRST)
    scenes, rows = (_kind_facts(config, kind, size.scenes) for kind in (1, 3))
    train_views, test_views = views_of(train, _TRAIN_FIRST), views_of(test, _TEST_FIRST)
    scene_views, row_views = views_of(scenes, _TEST_FIRST), views_of(rows, _TEST_FIRST)

    plain = [row for row, words in enumerate(train) if words.pattern == "plain"]
    colours = fit_colour_rule(train_views[plain], [train[row] for row in plain], config.colours, nouns)
    labels = torch.tensor([nouns.index(words.shape) for words in train])
    probe = train_probe(LabelledViews(train_views, labels), len(nouns), size.epochs, on_epoch=epoch_done)
    outlines = {noun: _outlines(noun, config, spec, pixels, size.outlines) for noun in nouns}
    trial = calibrate(probe, colours, outlines, (test_views, test), (scene_views, scenes), (row_views, rows))
    return Ruler(probe, colours, outlines, trial)


def _single_facts(config: SyntheticConfig, per_pair: int, stream: int) -> list[ObjectWords]:
    """Every noun in every colour, even a red panda, so that colour says nothing about the noun."""
    sizes, marked = tuple(SIZES), [pattern for pattern in config.patterns if pattern != "plain"]
    rng = np.random.default_rng([EVALUATION_SEED, _FACTS_STREAM, stream])
    facts: list[ObjectWords] = []
    for copy in range(per_pair):
        for noun in nouns_of(config):
            for colour in config.colours:
                pattern, second = "plain", ""
                if marked and noun not in COMPOSITES and rng.random() < _PATTERN_SHARE:
                    pattern = str(rng.choice(marked))
                    second = str(rng.choice([name for name in config.colours if name != colour]))
                facts.append(words_of(noun, colour, config, sizes[(copy + len(facts)) % len(sizes)], pattern, second))
    return facts


def _kind_facts(config: SyntheticConfig, kind: int, count: int) -> list[ObjectWords]:
    """Facts of scenes (kind 1 of `SyntheticConfig.kind_weights`) or rows (3), where there are such."""
    if not config.kind_weights[kind]:
        return []
    alone = replace(config, kind_weights=(0.0, float(kind == 1), 0.0, float(kind == 3)))
    return [
        draw_words(alone, np.random.default_rng([EVALUATION_SEED, _SCENE_STREAM, number])) for number in range(count)
    ]


def _outlines(noun: str, config: SyntheticConfig, spec: BackboneSpec, pixels: int, count: int) -> Tensor:
    numbers = range(_OUTLINES_FIRST, _OUTLINES_FIRST + count)
    made = true_instances(words_of(noun, config.colours[0], config), numbers, config)
    return silhouettes(render_true(made, spec, pixels))
