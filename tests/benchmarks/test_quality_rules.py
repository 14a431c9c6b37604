"""The judges of the quality benchmark on true renders, where the answer is known."""

import pytest
import torch
from torch import Tensor

from benchmarks.quality.calibration import OTHER_RELATION
from benchmarks.quality.cases import QUICK, all_cases, with_more_seeds
from benchmarks.quality.colour import colour_shares, fit_colour_rule
from benchmarks.quality.probe import LabelledViews, seen_nouns, train_probe
from benchmarks.quality.relations import is_arranged
from benchmarks.quality.silhouette import best_iou, silhouettes
from benchmarks.quality.truth import from_white, on_white, render_true, true_instances, true_object, words_of
from diffsplat.backbones import PICO
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.synthetic_config import DEFAULT_CONFIG, RICH_CONFIG

SIZE = 32
COLOURS = RICH_CONFIG.colours


def seen(words: ObjectWords, number: int) -> Tensor:
    """[V, 4, S, S]."""
    return render_true([true_object(words, number, RICH_CONFIG)], PICO, SIZE)[0]


def test_more_seeds_ask_for_the_same_objects_again() -> None:
    once = all_cases(RICH_CONFIG, QUICK)
    thrice = with_more_seeds(once, 3)
    assert thrice[: len(once)] == once
    assert [case.prompt for case in thrice] == [case.prompt for case in once] * 3
    assert len({case.seed for case in thrice}) == 3 * len({case.seed for case in once})


def test_single_shapes_show_most_of_the_colour_they_are_called() -> None:
    for number, colour in enumerate(COLOURS):
        for shape in RICH_CONFIG.shapes[number % 2 :: 2]:
            shares = colour_shares(seen(words_of(shape, colour, RICH_CONFIG), number), COLOURS)
            assert COLOURS[int(shares.argmax())] == colour, (shape, colour, shares)


def test_what_a_noun_always_shows_is_not_taken_for_its_colour() -> None:
    """A bed is mostly wood, a train has red wheels: their called colour is found all the same."""
    nouns = ("bed", "train", "cube")
    facts = [words_of(noun, colour, RICH_CONFIG) for _ in range(2) for noun in nouns for colour in COLOURS]
    views = torch.stack([seen(words, number) for number, words in enumerate(facts)])
    rule = fit_colour_rule(views, facts, COLOURS, nouns)
    tried = [(words, seen(words, 100 + number)) for number, words in enumerate(facts[: len(facts) // 2])]
    naive = [COLOURS[int(colour_shares(one, COLOURS).argmax())] == words.colour for words, one in tried]
    right = [rule.is_right(one, words) for words, one in tried]
    assert sum(naive) < 0.8 * len(tried)
    assert sum(right) >= 0.9 * len(tried)
    wrong = [
        rule.is_right(one, words._replace(colour=COLOURS[(COLOURS.index(words.colour) + 1) % len(COLOURS)]))
        for words, one in tried
    ]
    assert sum(wrong) <= 0.05 * len(tried)


def test_nothing_has_no_colour() -> None:
    words = words_of("cube", "red", RICH_CONFIG)
    rule = fit_colour_rule(
        torch.stack([seen(words, 0), seen(words._replace(colour="blue"), 0)]),
        [words, words._replace(colour="blue")],
        ("red", "blue"),
        ("cube",),
    )
    assert rule.seen_colour(torch.zeros(4, 4, SIZE, SIZE), "cube") == "none"


@pytest.mark.parametrize("pattern", ["striped", "two-tone"])
def test_a_pattern_needs_both_of_its_colours(pattern: str) -> None:
    plain = words_of("cube", "red", RICH_CONFIG)
    rule = fit_colour_rule(
        torch.stack([seen(plain, 0)] * 2), [plain, plain._replace(colour="blue")], COLOURS[:3], ("cube",)
    )
    words = words_of("cube", "red", RICH_CONFIG, "large", pattern, "blue")
    assert rule.is_right(seen(words, 1), words)
    assert not rule.is_right(seen(plain, 1), words)
    assert not rule.is_right(seen(words, 1), words._replace(second_colour="green"))


@pytest.mark.parametrize("relation", ["on top of", "next to"])
def test_relations_are_told_from_each_other(relation: str) -> None:
    for number, (shape, other) in enumerate(zip(RICH_CONFIG.shapes, RICH_CONFIG.shapes[3:], strict=False)):
        words = ObjectWords(
            shape, COLOURS[number % 12], "medium", "plain", "", relation, other, COLOURS[(number + 5) % 12], "rich"
        )
        scene = seen(words, number)
        assert is_arranged(scene, words, COLOURS), words
        assert not is_arranged(scene, words._replace(relation=OTHER_RELATION[relation]), COLOURS), words
        absent = COLOURS[(number + 8) % 12]
        assert not is_arranged(scene, words._replace(colour=absent), COLOURS), words
        turned = words._replace(colour=words.other_colour, other_colour=words.colour)
        assert is_arranged(scene, turned, COLOURS) == (relation == "next to"), words


def test_silhouettes_fit_their_own_noun_best() -> None:
    nouns = ("torus", "toy robot", "table", "cone")
    outlines = {
        noun: silhouettes(
            render_true(true_instances(words_of(noun, "red", RICH_CONFIG), range(6), RICH_CONFIG), PICO, SIZE)
        )
        for noun in nouns
    }
    for noun in nouns:
        outline = silhouettes(seen(words_of(noun, "blue", RICH_CONFIG), 50))
        fits = {name: best_iou(outline, true) for name, true in outlines.items()}
        assert max(fits, key=lambda name: fits[name]) == noun and fits[noun] > 0.4, fits  # thin legs seldom overlap
    assert best_iou(torch.zeros(4, SIZE, SIZE, dtype=torch.bool), outlines["cone"]) == 0.0


def test_the_probe_is_the_same_every_time_and_right_about_true_objects() -> None:
    nouns = ("frog", "car", "torus", "lamp")

    def objects(first: int, count: int) -> LabelledViews:
        words = [words_of(nouns[k % 4], COLOURS[k % 12], RICH_CONFIG) for k in range(count)]
        views = torch.stack([seen(told, first + k) for k, told in enumerate(words)])
        return LabelledViews(views, torch.arange(count) % 4)

    train, test = objects(0, 96), objects(1000, 24)
    probes = [train_probe(train, len(nouns), epochs=6) for _ in range(2)]
    for first, second in zip(probes[0].parameters(), probes[1].parameters(), strict=True):
        assert torch.equal(first, second)
    names = seen_nouns(probes[0], test.views, nouns)
    assert sum(name == nouns[k % 4] for k, name in enumerate(names)) >= 22, names


def test_views_with_and_without_alpha_tell_the_same() -> None:
    words = words_of("cone", "green", DEFAULT_CONFIG)
    views = render_true([true_object(words, 3, DEFAULT_CONFIG)], PICO, 64)[0]
    frames = from_white(on_white(views))
    names = DEFAULT_CONFIG.colours
    assert names[int(colour_shares(frames, names).argmax())] == "green"
    assert best_iou(silhouettes(frames), silhouettes(views)[None]) > 0.9


def test_true_objects_of_the_basic_series_have_the_words_asked_for() -> None:
    for size in ("small", "large"):
        words = words_of("cylinder", "cyan", DEFAULT_CONFIG, size)
        first, second = (true_object(words, number, DEFAULT_CONFIG) for number in (0, 1))
        assert first.words == second.words == words
        assert first.primitives != second.primitives
