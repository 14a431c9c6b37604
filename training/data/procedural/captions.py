"""Captions of procedural objects.

The basic grammar is here; `grammar` describes the objects of a rich configuration. Both also give the vocabulary of
small text encoders (`caption_words`, `synthetic.vocabulary`).
"""

import numpy as np

from training.data.procedural import grammar
from training.data.procedural.grammar import PLAIN_SHARE, SIZE_WORDS, article
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.palette import COLOURS

TEMPLATES = (
    "{article} {phrase}",
    "{phrase}",
    "one {phrase}",
    "the {phrase}",
    "{article} single {phrase}",
    "{article} 3d model of {article2} {phrase}",
    "{article} {size}{shape} that is {colour}",
    "{article} {size}{shape} in {colour}",
)
PLAIN_TEMPLATE = TEMPLATES[0]
SIZED_SHARE = 0.5  # captions that mention the size


def plain_caption(words: ObjectWords) -> str:
    """The caption that a user would type first: "a red cube"."""
    if words.grammar == "rich":
        return grammar.plain(words)
    return f"{article(words.colour)} {words.colour} {words.shape}"


def draw_caption(words: ObjectWords, rng: np.random.Generator) -> str:
    """A random caption of the object: template, size word, and whether the size is mentioned."""
    if words.grammar == "rich":
        return grammar.draw(words, rng)
    size = ""
    if rng.random() < SIZED_SHARE:
        size = str(rng.choice(SIZE_WORDS[words.size])) + " "
    template = PLAIN_TEMPLATE if rng.random() < PLAIN_SHARE else TEMPLATES[rng.integers(len(TEMPLATES))]
    return _write(template, words, size)


def all_captions(words: ObjectWords) -> tuple[str, ...]:
    """Every caption that `draw_caption` can return for these words."""
    if words.grammar == "rich":
        return grammar.every(words)
    sizes = ("", *(word + " " for word in SIZE_WORDS[words.size]))
    return tuple(dict.fromkeys(_write(template, words, size) for template in TEMPLATES for size in sizes))


def caption_words(shapes: tuple[str, ...]) -> tuple[str, ...]:
    """Every word that captions of these shapes use, sorted."""
    found = set()
    for shape in shapes:
        for colour in COLOURS:
            for size in SIZE_WORDS:
                for caption in all_captions(ObjectWords(shape, colour, size)):
                    found.update(caption.split())
    return tuple(sorted(found))


def _write(template: str, words: ObjectWords, size: str) -> str:
    phrase = f"{size}{words.colour} {words.shape}"
    text = template.replace("{article2}", article(phrase)).replace("{phrase}", phrase).replace("{size}", size)
    text = text.replace("{shape}", words.shape).replace("{colour}", words.colour)
    if text.startswith("{article}"):
        rest = text.removeprefix("{article} ")
        text = f"{article(rest)} {rest}"
    return text
