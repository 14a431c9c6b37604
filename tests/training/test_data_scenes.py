"""Rich objects: truthful captions within the vocabulary, held-out pairs, relations, colours, and a pure function."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from training.data.dataset import Dataset
from training.data.procedural.captions import all_captions, draw_caption, plain_caption
from training.data.procedural.grammar import COLOUR_SYNONYMS, COUNTS, RELATIONS, SIZE_WORDS, nouns_of
from training.data.procedural.held_out import HELD_OUT, HELD_OUT_OBJECTS, HELD_OUT_SHAPES
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.objects import COMPOSITES
from training.data.procedural.palette import PALETTE, nearest_colour
from training.data.procedural.parts import bounds
from training.data.procedural.plurals import plural
from training.data.procedural.scenes import held_out_pairs
from training.data.procedural.solids import ALL_SHAPES, PATTERNS
from training.data.procedural.source import ProceduralSource
from training.data.procedural.synthetic import RICH_CONFIG, build_object, synthetic_object, vocabulary
from training.data.record import unpack_views
from training.data.sample import build_sample

SERIES = [synthetic_object(5, index, RICH_CONFIG) for index in range(600)]


def pairs_of(words: ObjectWords) -> set[tuple[str, str]]:
    """Noun and colour pairs that the facts state."""
    told = {(words.shape, words.colour), (words.shape, words.second_colour), (words.other_shape, words.other_colour)}
    return {pair for pair in told if all(pair)}


def test_there_is_enough_to_learn():
    assert len(ALL_SHAPES) >= 10 and len(PALETTE) == 13 and len(COMPOSITES) >= 20
    wanted = "toy robot,frog,teddy bear,panda,book,cookie,snowman,chair,table,lamp,tree,house,car,rocket,mug"
    assert set(wanted.split(",")) <= set(COMPOSITES)
    assert not set(ALL_SHAPES) & set(COMPOSITES)
    nouns = [name for noun in (*ALL_SHAPES, *COMPOSITES) for name in nouns_of(noun)]
    assert len(nouns) == len(set(nouns)), "no name means two things"


def test_an_object_is_a_function_of_seed_index_and_configuration():
    for index in (0, 3, 17):
        again = synthetic_object(5, index, RICH_CONFIG)
        assert again.words == SERIES[index].words and again.primitives == SERIES[index].primitives
        np.testing.assert_array_equal(again.render((0,), 16).rgba, SERIES[index].render((0,), 16).rgba)
    assert len({made.primitives for made in SERIES}) == len(SERIES)
    rebuilt = build_object(SERIES[4].words, 5, 4, RICH_CONFIG)
    assert rebuilt.primitives == SERIES[4].primitives


def test_series_hold_every_kind_in_its_share():
    composite = np.mean([made.words.shape in COMPOSITES for made in SERIES])
    two = np.mean([bool(made.words.relation) for made in SERIES])
    several = np.mean([bool(made.words.number) for made in SERIES])
    assert abs(composite - 0.41) < 0.07 and abs(two - 0.18) < 0.06  # three and a half standard deviations
    assert abs(several - 0.14) < 0.05 and {made.words.number for made in SERIES} == {"", *COUNTS}
    singles = [made.words for made in SERIES if made.words.shape in ALL_SHAPES and not made.words.relation]
    assert {words.pattern for words in singles} == set(PATTERNS)
    assert {words.shape for words in singles} == set(ALL_SHAPES)
    assert {made.words.shape for made in SERIES} >= set(COMPOSITES)
    assert {made.words.relation for made in SERIES} == {"", *RELATIONS}


def test_held_out_pairs_are_never_made_and_can_be_asked_for():
    assert not {pair for made in SERIES for pair in pairs_of(made.words)} & HELD_OUT
    asked = replace(RICH_CONFIG, held_out="only")
    shown = {pair for index in range(600) for pair in pairs_of(synthetic_object(0, index, asked).words)}
    assert shown == HELD_OUT == set(held_out_pairs(asked))
    only_shapes = replace(asked, composites=(), kind_weights=(1.0, 0.0, 0.0, 0.0))
    assert set(held_out_pairs(only_shapes)) == HELD_OUT_SHAPES
    with pytest.raises(ValueError, match="held-out pairs"):
        synthetic_object(0, 0, replace(only_shapes, shapes=("cube",), colours=("red",)))


def test_held_out_pairs_leave_every_noun_and_colour_to_learn_from():
    assert {shape for shape, _ in HELD_OUT_SHAPES} == set(ALL_SHAPES)
    assert {colour for _, colour in HELD_OUT_SHAPES} == set(PALETTE)
    for noun, colour in HELD_OUT_OBJECTS:
        assert colour in COMPOSITES[noun].colours, (noun, colour)
    for noun, kind in COMPOSITES.items():
        natural = kind.natural or kind.colours
        assert not natural or {c for c in natural if (noun, c) not in HELD_OUT}, noun
        assert {*kind.colours, *natural} <= set(PALETTE), noun
        assert not kind.colours or len({c for c in kind.colours if (noun, c) not in HELD_OUT}) >= 3, noun


def test_untold_colours_are_not_the_held_out_ones():
    reds = PALETTE["red"]
    for index in range(40):
        made = build_object(ObjectWords("pyramid", "", "large", grammar="rich"), 1, index)
        assert made.primitives[0].rgb not in (reds, PALETTE["cyan"])


def test_captions_tell_the_truth_in_the_vocabulary():
    known = set(vocabulary(RICH_CONFIG))
    rng = np.random.default_rng(0)
    tints = {tint: colour for colour, others in COLOUR_SYNONYMS.items() for tint in others}
    tints |= {colour: colour for colour in PALETTE}
    for made in SERIES:
        words = made.words
        for caption in (made.caption, *(draw_caption(words, rng) for _ in range(4))):
            tokens = caption.split()
            assert set(tokens) <= known, caption
            assert "{" not in caption and "  " not in caption and caption == caption.strip()
            names = nouns_of(words.shape)
            if words.number:
                names = tuple(plural(name) for name in names)
                said = [count for count in COUNTS if count in tokens] or ["two" if "pair" in tokens else ""]
                assert said == [words.number], caption
            assert any(f" {name} " in f" {caption} " for name in names), caption
            if words.other_shape:
                assert any(f" {name} " in f" {caption} " for name in nouns_of(words.other_shape)), caption
                assert any(f" {between} " in caption for between in RELATIONS[words.relation])
            stated = caption.removesuffix(" on a white background").split()
            told = {tints[token] for token in stated if token in tints}
            assert told == {colour for colour in (words.colour, words.second_colour, words.other_colour) if colour}


def test_drawn_captions_are_among_all_captions():
    rng = np.random.default_rng(0)
    for words in (
        ObjectWords("cube", "grey", "small", grammar="rich"),
        ObjectWords("sphere", "red", "large", "striped", "cyan", grammar="rich"),
        ObjectWords("panda", "", "large", grammar="rich"),
        ObjectWords("cube", "red", "large", "plain", "", "on top of", "dome", "blue", "rich"),
        ObjectWords("bunny", "grey", "large", grammar="rich", number="two"),
        ObjectWords("panda", "", "large", grammar="rich", number="three"),
    ):
        every = set(all_captions(words))
        assert {draw_caption(words, rng) for _ in range(300)} <= every
        assert plain_caption(words) in every


def test_plain_captions_read_as_users_write():
    def plain(*fields: str) -> str:
        return plain_caption(ObjectWords(*fields, grammar="rich"))

    assert plain("panda", "", "large") == "a panda"
    assert plain("car", "red", "large") == "a red car"
    assert plain("ellipsoid", "", "large") == "an ellipsoid"
    assert plain("cone", "orange", "small", "striped", "blue") == "an orange and blue striped cone"
    on_top = plain("cube", "red", "large", "plain", "", "on top of", "cylinder", "blue")
    assert on_top == "a red cube on top of a blue cylinder"
    assert plain_caption(ObjectWords("cube", "red", "large", grammar="rich", number="two")) == "two red cubes"
    assert plain_caption(ObjectWords("pine tree", "", "large", grammar="rich", number="three")) == "three pine trees"


def test_sizes_are_mostly_said_where_they_are_not_medium():
    rng = np.random.default_rng(0)

    def share(size: str) -> float:
        words = ObjectWords("cube", "red", size, grammar="rich")
        known = {token for word in SIZE_WORDS[size] for token in word.split()}
        return float(np.mean([bool(known & set(draw_caption(words, rng).split())) for _ in range(400)]))

    assert share("small") > 0.6 and share("large") > 0.6 and share("medium") < 0.25


@pytest.mark.parametrize("shape", ["sphere", "cube", "cone", "cylinder"])
def test_small_objects_are_small_in_their_views(shape: str):
    """A size is a fact of the world: no view is normalised to the object."""
    covered = {}
    for size in ("small", "medium", "large"):
        config = replace(RICH_CONFIG, size_jitter=0.0, distance_range=(1.4, 1.4), yaw_range_deg=(0.0, 0.0))
        made = build_object(ObjectWords(shape, "red", size, grammar="rich"), 0, 0, config)
        seen = build_sample(unpack_views(made.render_packed((0, 6, 12, 18), 64)), "", "", "pixel_centers")
        covered[size] = float(seen.alphas.mean())
    assert covered["large"] / covered["small"] == pytest.approx((1.0 / 0.62) ** 2, rel=0.12)
    assert covered["small"] < covered["medium"] < covered["large"]


def test_several_objects_stand_apart_in_a_row():
    """From the front as many outlines as the caption says, of one colour, at one height."""
    for index, made in enumerate(made for made in SERIES if made.words.number and made.words.shape in ALL_SHAPES):
        count = COUNTS[made.words.number]
        assert len(made.primitives) == count and len({part.rgb for part in made.primitives}) == 1
        solid = (made.render((27,), 96).rgba[0, ..., 3] > 0.5).astype(np.uint8)
        outlines, _ = cv2.connectedComponents(solid)
        assert outlines - 1 == count, (index, made.words)


def test_relations_are_true():
    for made in SERIES:
        if not made.words.relation:
            continue
        (low, high), (other_low, other_high) = (bounds([part]) for part in made.primitives)
        if made.words.relation == "on top of":
            assert low[2] == pytest.approx(other_high[2], abs=1e-6)
            np.testing.assert_allclose((low + high)[:2], (other_low + other_high)[:2], atol=1e-6)
        else:
            assert low[2] == pytest.approx(other_low[2], abs=1e-6)
            gap = np.array(made.primitives[0].centre[:2]) - np.array(made.primitives[1].centre[:2])
            assert np.linalg.norm(gap) > 0.2
            assert abs(gap[0]) > abs(gap[1]), "side by side for the first view"


@pytest.mark.parametrize("colour", PALETTE)
def test_plain_shapes_have_the_colour_that_is_told(colour: str):
    for shape in ("sphere", "torus", "cube", "pyramid"):
        made = build_object(ObjectWords(shape, colour, "large", grammar="rich"), 0, 1)
        rgba = made.render((0, 6, 12, 18), 24).rgba
        mean = (rgba[..., :3] * rgba[..., 3:]).sum((0, 1, 2)) / rgba[..., 3].sum()
        assert nearest_colour(mean) == colour


def test_composites_carry_their_main_colour():
    for noun, kind in COMPOSITES.items():
        for colour in kind.colours[:2]:
            made = build_object(ObjectWords(noun, colour, "large", grammar="rich"), 0, 0)
            assert any(part.rgb == PALETTE[colour] for part in made.primitives), (noun, colour)


def test_a_mug_shows_no_drink_from_below():
    """Two faces in one plane would be seen in stripes."""
    made = build_object(ObjectWords("mug", "cyan", "large", grammar="rich"), 0, 0)
    pixels = made.render((26,), 48).rgba[0]
    rgb = pixels[pixels[..., 3] == 1.0][:, :3]
    cyan = np.array(PALETTE["cyan"])
    np.testing.assert_allclose(
        rgb / rgb.max(axis=1, keepdims=True), np.tile(cyan / cyan.max(), (len(rgb), 1)), atol=0.02
    )


def test_composites_vary_in_more_than_their_turn():
    for noun in COMPOSITES:
        config = replace(RICH_CONFIG, size_jitter=0.0)
        scales = {
            tuple(np.round([part.scale for part in build_object(words, 0, index, config).primitives], 6).ravel())
            for index in range(4)
            for words in [ObjectWords(noun, "", "large", grammar="rich")]
        }
        assert len(scales) > 1 or noun == "beach ball", noun  # which varies its slices


def test_facts_survive_a_file():
    for made in SERIES[:50]:
        assert ObjectWords(*json.loads(json.dumps(list(made.words)))) == made.words


def test_the_data_set_takes_the_rich_configuration():
    source = ProceduralSource(0, 6, 16, pool_size=1, config=RICH_CONFIG)
    sample = Dataset(source, num_views=5, first_views=(0,)).sample(3, np.random.default_rng(0))
    assert sample.images_rgb.shape == (5, 3, 16, 16)
    assert sample.caption in all_captions(source.made(3).words)
