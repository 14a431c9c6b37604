"""Objects of the rich generator: their facts, and the primitives that show them."""

import numpy as np

from training.data.procedural.grammar import COUNTS, pick
from training.data.procedural.held_out import HELD_OUT
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.objects import COMPOSITES, Draw
from training.data.procedural.palette import PALETTE, Rgb
from training.data.procedural.parts import FIT_RADIUS, Parts, bounds, fit, moved, turned
from training.data.procedural.shapes import Primitive
from training.data.procedural.solids import ALL_SHAPES, SIZES, solid_primitive
from training.data.procedural.synthetic_config import SyntheticConfig

SHAPE_COLOUR_TOLD, OBJECT_COLOUR_TOLD = 0.95, 0.65  # shares of objects whose colour the caption names
_GAP = 0.16  # between neighbours, in units of the largest instances: three pixels of 64 between three objects
_ROW_TURN = 0.5  # share of the yaw range that a row of objects turns by, so that the first view sees all of them


def draw_words(config: SyntheticConfig, rng: np.random.Generator) -> ObjectWords:
    """Random facts of one object."""
    if config.held_out == "only":
        return _draw_held_out(config, rng)
    weights = np.array(config.kind_weights) / sum(config.kind_weights)
    kind = int(rng.choice(4, p=weights))
    if kind == 3:
        return _draw_several(config, rng)
    if kind == 2:
        return _draw_composite(config, rng)
    shape, size = pick(config.shapes, rng), pick(config.sizes, rng)
    colour = pick(_allowed(shape, config.colours, config), rng)
    if kind == 1:
        other = pick(tuple(s for s in config.shapes if s != shape), rng)
        other_colour = pick(tuple(c for c in _allowed(other, config.colours, config) if c != colour), rng)
        relation = pick(config.relations, rng)
        return ObjectWords(shape, colour, size, "plain", "", relation, other, other_colour, "rich")
    marked = tuple(pattern for pattern in config.patterns if pattern != "plain")
    if marked and rng.random() < config.pattern_share:
        others = tuple(c for c in _allowed(shape, config.colours, config) if c != colour)
        return ObjectWords(shape, colour, size, pick(marked, rng), pick(others, rng), grammar="rich")
    told = colour if rng.random() < SHAPE_COLOUR_TOLD else ""
    return ObjectWords(shape, told, size, grammar="rich")


def build_parts(words: ObjectWords, config: SyntheticConfig, rng: np.random.Generator) -> Parts:
    """Primitives of one object: parametric variety, size and yaw at random; inside the ball of `FIT_RADIUS`."""
    shrink = 1.0 - config.size_jitter * rng.random()
    yaw = float(rng.uniform(*config.yaw_range_deg))
    if words.number:
        return _build_several(words, config, shrink, yaw, rng)
    if words.shape in COMPOSITES:
        return _composite(words, _main_colour(words, config, rng), FIT_RADIUS * shrink, yaw, rng)
    if not words.relation:
        return _centred([_solid(words, SIZES[words.size] * shrink, yaw, config, rng)])
    first = _standing(words, 1.0, config, rng)
    second_words = ObjectWords(words.other_shape, words.other_colour, words.size, grammar="rich")
    second = _standing(second_words, float(rng.uniform(0.9, 1.25)), config, rng)
    if words.relation == "on top of":
        first = moved(first, (0.0, 0.0, float(bounds(second)[1][2])))
    else:
        side = 1.0 if rng.random() < 0.5 else -1.0
        distance = float(bounds(first)[1][0] + bounds(second)[1][0]) + _GAP
        first = moved(first, (side * distance, 0.0, 0.0))
        yaw *= _ROW_TURN
    return turned(fit(first + second, FIT_RADIUS * shrink), yaw)


def _build_several(
    words: ObjectWords, config: SyntheticConfig, shrink: float, yaw: float, rng: np.random.Generator
) -> Parts:
    """Two or three of one kind and colour, in a row across the first view."""
    colour = _main_colour(words, config, rng)
    row: Parts = []
    for _ in range(COUNTS[words.number]):
        turn = float(rng.uniform(*config.yaw_range_deg))
        if words.shape in COMPOSITES:
            one = _grounded(_composite(words, colour, FIT_RADIUS, turn, rng))
        else:
            one = _grounded([solid_primitive(words.shape, 1.0, turn, colour)])
        shift = float(bounds(row)[1][0] - bounds(one)[0][0]) + _GAP if row else 0.0
        row += moved(one, (shift, 0.0, 0.0))
    return turned(fit(row, FIT_RADIUS * shrink), yaw * _ROW_TURN)


def _composite(words: ObjectWords, colour: Rgb, radius: float, yaw: float, rng: np.random.Generator) -> Parts:
    kind = COMPOSITES[words.shape]
    turn = float(rng.uniform(0.0, 360.0)) if kind.symmetric else yaw
    return turned(fit(kind.build(Draw(rng, colour)), radius), turn)


def _main_colour(words: ObjectWords, config: SyntheticConfig, rng: np.random.Generator) -> Rgb:
    """That of the caption; without one a natural one that is not held out."""
    names = (words.colour,) if words.colour else _allowed(words.shape, _natural_colours(words.shape, config), config)
    return PALETTE[pick(names, rng)] if names else PALETTE["grey"]


def _natural_colours(noun: str, config: SyntheticConfig) -> tuple[str, ...]:
    return COMPOSITES[noun].natural or COMPOSITES[noun].colours if noun in COMPOSITES else config.colours


def _solid(
    words: ObjectWords, factor: float, yaw: float, config: SyntheticConfig, rng: np.random.Generator
) -> Primitive:
    colour = _main_colour(words, config, rng)
    second = PALETTE[words.second_colour] if words.second_colour else (0.0, 0.0, 0.0)
    return solid_primitive(words.shape, factor, yaw, colour, words.pattern, second)


def _standing(words: ObjectWords, factor: float, config: SyntheticConfig, rng: np.random.Generator) -> Parts:
    """One shape on the ground z = 0, in the middle."""
    return _grounded([_solid(words, factor, float(rng.uniform(*config.yaw_range_deg)), config, rng)])


def _grounded(parts: Parts) -> Parts:
    """The same parts on the ground, in the middle."""
    part = _centred(parts)
    return moved(part, (0.0, 0.0, -float(bounds(part)[0][2])))


def _centred(parts: Parts) -> Parts:
    low, high = bounds(parts)
    x, y, z = (-0.5 * (low + high)).tolist()
    return moved(parts, (x, y, z))


def _draw_composite(config: SyntheticConfig, rng: np.random.Generator) -> ObjectWords:
    noun = pick(config.composites, rng)
    names = tuple(c for c in _allowed(noun, COMPOSITES[noun].colours, config) if c in config.colours)
    told = names and rng.random() < OBJECT_COLOUR_TOLD
    return ObjectWords(noun, pick(names, rng) if told else "", "large", grammar="rich")


def _draw_several(config: SyntheticConfig, rng: np.random.Generator) -> ObjectWords:
    """As many shapes as composite objects, if there are both."""
    if config.composites and rng.random() < 0.5:
        words = _draw_composite(config, rng)
    else:
        shape = pick(config.shapes, rng)
        words = ObjectWords(shape, pick(_allowed(shape, config.colours, config), rng), "large", grammar="rich")
    return words._replace(number=pick(tuple(COUNTS), rng))


def _draw_held_out(config: SyntheticConfig, rng: np.random.Generator) -> ObjectWords:
    pairs = held_out_pairs(config)
    noun, colour = pairs[int(rng.integers(len(pairs)))]
    return ObjectWords(noun, colour, pick(config.sizes, rng) if noun in ALL_SHAPES else "large", grammar="rich")


def held_out_pairs(config: SyntheticConfig) -> tuple[tuple[str, str], ...]:
    """The held-out pairs whose noun and colour are both in the configuration, sorted.

    Raises:
        ValueError: the configuration has no such pair.
    """
    nouns = {*config.shapes, *config.composites}
    pairs = tuple(sorted(pair for pair in HELD_OUT if pair[0] in nouns and pair[1] in config.colours))
    if not pairs:
        raise ValueError("the configuration's nouns and colours contain no held-out pairs")
    return pairs


def _allowed(noun: str, colours: tuple[str, ...], config: SyntheticConfig) -> tuple[str, ...]:
    if config.held_out != "never":
        return colours
    return tuple(colour for colour in colours if (noun, colour) not in HELD_OUT)
