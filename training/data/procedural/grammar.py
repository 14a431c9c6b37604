"""Captions of the objects of a rich configuration: synonyms, patterns, relations and many wordings.

`captions` calls these functions for `ObjectWords` with ``grammar="rich"``.
"""

from collections.abc import Iterator

import numpy as np

from training.data.procedural.object_words import ObjectWords
from training.data.procedural.objects import COMPOSITES
from training.data.procedural.plurals import plural
from training.data.procedural.solids import ALL_SHAPES

PLAIN_SHARE = 0.4  # captions in the plainest form, the one that users type most
# Captions of single shapes that mention the size: rarely where it is medium, so that others mostly mean that.
SIZED_SHARES = {"small": 0.7, "medium": 0.15, "large": 0.7}
SYNONYM_SHARE = 0.3  # nouns replaced by another name
RELATIONS: dict[str, tuple[str, ...]] = {
    "on top of": ("on top of", "on", "above", "standing on"),
    "next to": ("next to", "beside", "by"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized",),
    "large": ("large", "big", "huge"),
}
COUNTS = {"two": 2, "three": 3}
COLOUR_SYNONYMS: dict[str, tuple[str, ...]] = {
    "grey": ("gray",),
    "purple": ("violet",),
    "cyan": ("turquoise",),
}
FRAMES = (
    "{a} {x}",
    "{x}",
    "one {x}",
    "the {x}",
    "a single {x}",
    "a 3d model of {a} {x}",
    "a 3d {x}",
    "an image of {a} {x}",
    "a photo of {a} {x}",
    "a rendering of {a} {x}",
    "{a} {x} on a white background",
)
OBJECT_FRAMES = ("a cute {x}", "a toy {x}", "a simple {x}", "a cartoon {x}", "a nice {x}", "a low poly {x}")
COLOUR_LAST = ("{size}{noun} that is {colour}", "{size}{noun} in {colour}", "{size}{noun} coloured {colour}")
COUNT_PHRASES = ("{count} {colour}{nouns}", "{count} {nouns} in {tint}", "a pair of {colour}{nouns}")
COUNT_FRAMES = (
    "{x}",
    "{x} side by side",
    "{x} in a row",
    "{x} next to each other",
    "a photo of {x}",
    "a rendering of {x}",
    "{x} on a white background",
)
PATTERN_PHRASES = {
    "striped": (
        "{size}{colour} and {second} striped {noun}",
        "{size}striped {colour} and {second} {noun}",
        "{size}{noun} with {colour} and {second} stripes",
    ),
    "two-tone": (
        "{size}two-tone {colour} and {second} {noun}",
        "{size}{noun} half {colour} and half {second}",
        "{size}{colour} and {second} {noun}",
    ),
}


def plain(words: "ObjectWords") -> str:
    """The caption that a user would type first: "a red cube on top of a blue cylinder"."""
    if words.number:
        return _count_phrase(words.shape, words.colour, words.number, 0)
    return _plain(words, "")


def _plain(words: "ObjectWords", size: str) -> str:
    text = _with_article(_phrase(words.shape, words.colour, words.pattern, words.second_colour, size, 0))
    if words.relation:
        text += f" {words.relation} {_with_article(_phrase(words.other_shape, words.other_colour, '', '', '', 0))}"
    return text


def draw(words: "ObjectWords", rng: np.random.Generator) -> str:
    """A random caption: synonyms, order, size and frame."""
    is_plain = rng.random() < PLAIN_SHARE
    if words.number:
        return plain(words) if is_plain else _draw_count(words, rng)
    single = words.shape in ALL_SHAPES and not words.relation
    size = pick(SIZE_WORDS[words.size], rng) + " " if single and rng.random() < SIZED_SHARES[words.size] else ""
    if is_plain:
        return _plain(words, size)
    first = _draw_phrase(words.shape, words.colour, words.pattern, words.second_colour, size, rng)
    if words.relation:
        between = pick(RELATIONS[words.relation], rng)
        second = _draw_phrase(words.other_shape, words.other_colour, "", "", "", rng)
        return f"{_with_article(first)} {between} {_with_article(second)}"
    frames = FRAMES if single else FRAMES + OBJECT_FRAMES
    return _framed(pick(frames, rng), first)


def every(words: "ObjectWords") -> tuple[str, ...]:
    """Every caption that `draw` can return for a single object; for two, all phrases of both and all relations."""
    if words.number:
        return tuple(
            dict.fromkeys(
                frame.replace("{x}", _count_phrase(name, tint, words.number, form))
                for frame in COUNT_FRAMES
                for name in nouns_of(words.shape)
                for tint in (words.colour, *COLOUR_SYNONYMS.get(words.colour, ()))
                for form in _count_forms(words)
            )
        )
    sizes: tuple[str, ...] = ("",)
    if words.shape in ALL_SHAPES and not words.relation:
        sizes = ("", *(word + " " for word in SIZE_WORDS[words.size]))
    firsts = [
        text for size in sizes for text in _phrases(words.shape, words.colour, words.pattern, words.second_colour, size)
    ]
    if words.relation:
        seconds = list(_phrases(words.other_shape, words.other_colour, "", "", ""))
        found = [
            f"{_with_article(first)} {between} {_with_article(second)}"
            for first in firsts
            for between in RELATIONS[words.relation]
            for second in seconds
        ]
    else:
        frames = FRAMES if words.shape in ALL_SHAPES else FRAMES + OBJECT_FRAMES
        found = [_framed(frame, first) for frame in frames for first in firsts]
    return tuple(dict.fromkeys(found))


def nouns_of(shape: str) -> tuple[str, ...]:
    """The name of a shape or object and its synonyms."""
    known = ALL_SHAPES[shape] if shape in ALL_SHAPES else COMPOSITES[shape]
    return (shape, *known.nouns)


def _phrases(noun: str, colour: str, pattern: str, second: str, size: str) -> Iterator[str]:
    for name in nouns_of(noun):
        for tint in (colour, *COLOUR_SYNONYMS.get(colour, ())):
            for other in (second, *COLOUR_SYNONYMS.get(second, ())):
                for form in range(len(_forms(colour, pattern))):
                    yield _phrase(name, tint, pattern, other, size, form)


def _draw_phrase(noun: str, colour: str, pattern: str, second: str, size: str, rng: np.random.Generator) -> str:
    name = pick(nouns_of(noun), rng) if rng.random() < SYNONYM_SHARE else noun
    forms = _forms(colour, pattern)
    # The usual order, "red cube", is as frequent as all others together.
    form = int(rng.integers(len(forms))) if rng.random() < 0.5 else 0
    return _phrase(name, _tint(colour, rng), pattern, _tint(second, rng), size, form)


def _draw_count(words: "ObjectWords", rng: np.random.Generator) -> str:
    name = pick(nouns_of(words.shape), rng) if rng.random() < SYNONYM_SHARE else words.shape
    forms = _count_forms(words)
    form = forms[int(rng.integers(len(forms)))]
    phrase = _count_phrase(name, _tint(words.colour, rng), words.number, form)
    return pick(COUNT_FRAMES, rng).replace("{x}", phrase)


def _count_forms(words: "ObjectWords") -> list[int]:
    """Rows of `COUNT_PHRASES` that say what the words do: a pair is of two, and a colour has a name."""
    fits = [True, bool(words.colour), words.number == "two"]
    return [form for form, fit in enumerate(fits) if fit]


def _count_phrase(noun: str, colour: str, count: str, form: int) -> str:
    before = f"{colour} " if colour else ""
    return COUNT_PHRASES[form].format(count=count, colour=before, tint=colour, nouns=plural(noun))


def _tint(colour: str, rng: np.random.Generator) -> str:
    others = COLOUR_SYNONYMS.get(colour, ())
    return pick(others, rng) if others and rng.random() < SYNONYM_SHARE else colour


def _forms(colour: str, pattern: str) -> tuple[str, ...]:
    if pattern in PATTERN_PHRASES:
        return PATTERN_PHRASES[pattern]
    return ("{size}{colour} {noun}", *COLOUR_LAST) if colour else ("{size}{noun}",)


def _phrase(noun: str, colour: str, pattern: str, second: str, size: str, form: int) -> str:
    return _forms(colour, pattern)[form].format(size=size, noun=noun, colour=colour, second=second)


def _framed(frame: str, phrase: str) -> str:
    return frame.replace("{a}", article(phrase)).replace("{x}", phrase)


def _with_article(phrase: str) -> str:
    return f"{article(phrase)} {phrase}"


def article(following: str) -> str:
    """The indefinite article before `following`."""
    return "an" if following[0] in "aeiou" and not following.startswith("uni") else "a"


def pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    """One of the options at random."""
    return options[int(rng.integers(len(options)))]


def vocabulary(nouns: tuple[str, ...], colours: tuple[str, ...]) -> tuple[str, ...]:
    """Every word that captions of these shapes and objects in these colours may use, sorted."""
    patterns = tuple(form for forms in PATTERN_PHRASES.values() for form in forms)
    counts = (*COUNT_PHRASES, *COUNT_FRAMES)
    templates = (
        " ".join((*FRAMES, *OBJECT_FRAMES, *COLOUR_LAST, *patterns, *counts)).replace("{", " {").replace("}", "} ")
    )
    found = {word for word in templates.split() if "{" not in word} | {"a", "an"}
    names = [name for noun in nouns for name in nouns_of(noun)]
    tints = [tint for colour in colours for tint in (colour, *COLOUR_SYNONYMS.get(colour, ()))]
    plurals = [plural(name) for name in names]
    for text in (*names, *plurals, *COUNTS, *tints, *sum(RELATIONS.values(), ()), *sum(SIZE_WORDS.values(), ())):
        found.update(text.split())
    return tuple(sorted(found))
