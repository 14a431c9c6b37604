"""The requests that a bundle is judged by.

Their objects, seeds and drawn captions are used by no training. Every other request has the plainest wording, the rest
have captions drawn from the grammar. Training never shows the pairs of `held_out.HELD_OUT`, in any wording.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from diffsplat_client.request import GenerationRequest

from benchmarks.quality.truth import EVALUATION_SEED, words_of
from training.data.procedural.captions import draw_caption, plain_caption
from training.data.procedural.held_out import HELD_OUT
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.objects import COMPOSITES
from training.data.procedural.scenes import draw_words, held_out_pairs
from training.data.procedural.synthetic_config import SyntheticConfig

FIRST_SEED = 1_000  # of the requests
_SEED_STRIDE = 100_000  # more than there are cases
_CAPTION_STREAM, _SCENE_STREAM = 21, 22
_BASIC_SEEDS = 4
_SPREAD_SEEDS = 4
_Item = TypeVar("_Item")

# shape, object: single plain ones, pairs that training showed; size: every shape small and large; spread: some of the
# single ones again with several seeds; count: two or three alike
Group = Literal["shape", "object", "held-out", "pattern", "relation", "count", "size", "spread"]


class Case(NamedTuple):
    """One request."""

    group: Group
    words: ObjectWords
    prompt: str
    seed: int

    def request(self, guidance_scale: float | None = None, steps: int | None = None) -> GenerationRequest:
        """The request, with the bundle's defaults for what is None."""
        return GenerationRequest(self.prompt, seed=self.seed, guidance_scale=guidance_scale, steps=steps)


class Amounts(NamedTuple):
    """How many requests of each group a rich bundle gets, at most."""

    shapes: int
    objects: int
    held_out: int
    patterns: int
    relations: int
    counts: int
    sizes: int  # shapes, each small and large
    spread: int  # prompts, each with `_SPREAD_SEEDS` seeds


FULL = Amounts(shapes=158, objects=172, held_out=112, patterns=28, relations=48, counts=40, sizes=14, spread=12)
QUICK = Amounts(shapes=16, objects=22, held_out=12, patterns=4, relations=8, counts=0, sizes=0, spread=0)


def all_cases(config: SyntheticConfig, amounts: Amounts) -> list[Case]:
    """The requests for a bundle trained on `config`; the basic grammar has one fixed set."""
    if config.grammar == "basic":
        return _basic_cases(config)
    singles = spread_out(_seen_shapes(config), amounts.shapes) + spread_out(_seen_objects(config), amounts.objects)
    unseen = [words_of(noun, colour, config) for noun, colour in held_out_pairs(config)]
    unseen = spread_out(unseen * 2, amounts.held_out)
    groups: list[tuple[Group, list[ObjectWords]]] = [
        ("shape", [words for words in singles if words.shape not in COMPOSITES]),
        ("object", [words for words in singles if words.shape in COMPOSITES]),
        ("held-out", unseen),
        ("pattern", _patterned(config, amounts.patterns)),
        ("relation", _scenes(config, amounts.relations)),
    ]
    cases: list[Case] = []
    for group, asked in groups:
        for words in asked:
            number = len(cases)
            prompt = plain_caption(words)
            if number % 2:
                prompt = draw_caption(words, np.random.default_rng([EVALUATION_SEED, _CAPTION_STREAM, number]))
            cases.append(Case(group, words, prompt, FIRST_SEED + number))
    for words in _several(config, amounts.counts):
        cases.append(Case("count", words, plain_caption(words), FIRST_SEED + len(cases)))
    for words in _sized(config, amounts.sizes):
        _, rest = plain_caption(words).split(" ", 1)
        cases.append(Case("size", words, f"a {words.size} {rest}", FIRST_SEED + len(cases)))
    for words in spread_out([words for words in singles if words.colour], amounts.spread):
        seeds = range(FIRST_SEED, FIRST_SEED + _SPREAD_SEEDS)
        cases += [Case("spread", words, plain_caption(words), seed) for seed in seeds]
    return cases


def with_more_seeds(cases: Sequence[Case], seeds: int) -> list[Case]:
    """Every case with `seeds` seeds in all, so that a share of right objects is the mean of those of the seeds."""
    return [case._replace(seed=case.seed + _SEED_STRIDE * turn) for turn in range(seeds) for case in cases]


def sweep_cases(cases: list[Case], count: int) -> list[Case]:
    """A few of the single objects, a third of them held-out pairs if the cases have any."""
    held_out = [case for case in cases if case.group == "held-out"]
    others = [case for case in cases if case.group in ("shape", "object") and case.words.colour]
    third = count // 3 if held_out else 0
    return spread_out(others, count - third) + spread_out(held_out, third)


def _basic_cases(config: SyntheticConfig) -> list[Case]:
    return [
        Case("shape", words, plain_caption(words), seed)
        for words in (words_of(shape, colour, config) for shape in config.shapes for colour in config.colours)
        for seed in range(FIRST_SEED, FIRST_SEED + _BASIC_SEEDS)
    ]


def _seen_shapes(config: SyntheticConfig) -> list[ObjectWords]:
    pairs = [(shape, colour) for shape in config.shapes for colour in config.colours]
    return [words_of(shape, colour, config) for shape, colour in pairs if (shape, colour) not in HELD_OUT]


def _seen_objects(config: SyntheticConfig) -> list[ObjectWords]:
    """Every composite object without a colour and in up to three of its colours."""
    found = []
    for noun in config.composites:
        allowed = [colour for colour in COMPOSITES[noun].colours if colour in config.colours]
        colours = [colour for colour in allowed if (noun, colour) not in HELD_OUT]
        found += [words_of(noun, colour, config) for colour in ("", *spread_out(colours, 3))]
    return found


def _patterned(config: SyntheticConfig, count: int) -> list[ObjectWords]:
    marked = [pattern for pattern in config.patterns if pattern != "plain"]
    rng = np.random.default_rng([EVALUATION_SEED, _SCENE_STREAM])
    found = []
    for number in range(count if marked else 0):
        shape = config.shapes[number % len(config.shapes)]
        colours = [colour for colour in config.colours if (shape, colour) not in HELD_OUT]
        first, second = rng.choice(colours, 2, replace=False).tolist()
        found.append(words_of(shape, first, config, "medium", marked[number % len(marked)], second))
    return found


def _sized(config: SyntheticConfig, count: int) -> list[ObjectWords]:
    """Shapes in colours that training showed, each small and large."""
    found = []
    for number, shape in enumerate(spread_out(config.shapes, count)):
        colours = [colour for colour in config.colours if (shape, colour) not in HELD_OUT]
        colour = colours[number % len(colours)]
        found += [words_of(shape, colour, config, size) for size in ("small", "large")]
    return found


def _scenes(config: SyntheticConfig, count: int) -> list[ObjectWords]:
    return _drawn(replace(config, kind_weights=(0.0, 1.0, 0.0, 0.0)), count)


def _several(config: SyntheticConfig, count: int) -> list[ObjectWords]:
    """Two or three alike, where the configuration has such."""
    if not config.kind_weights[3]:
        return []
    return _drawn(replace(config, kind_weights=(0.0, 0.0, 0.0, 1.0)), count)


def _drawn(config: SyntheticConfig, count: int) -> list[ObjectWords]:
    rngs = (np.random.default_rng([EVALUATION_SEED, _SCENE_STREAM, number]) for number in range(count))
    return [draw_words(config, rng) for rng in rngs]


def spread_out(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most `count` of them, evenly spaced, order kept."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
