"""What a text encoder does not read of a prompt: the end that was cut, words it does not know, weights."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_QUOTED_CUT, _QUOTED_WORD, _LISTED_WORDS = 120, 40, 8
# (red:1.3), [red:0.5], <lora:name:1> of other user interfaces and (red)1.3 of Compel; (ratio 4:3) is no weight
_WEIGHT = re.compile(
    r"[(\[<][^()\[\]<>]*(?<!\d):\s*(?P<in>[-+]?\d*\.?\d+)\s*[)\]>]|\([^()]*\)(?P<behind>\d+(?:\.\d+)?)"
)


class Unread(NamedTuple):
    """What one text encoder does not read of one prompt."""

    cut: str  # the text after the last token that fits, "" if all of it fits
    unknown: tuple[str, ...]  # words, symbols or characters that the vocabulary lacks, each once, in order
    is_all: bool  # no token of the text is left


def find_unread(
    prompt: str, offsets: Sequence[tuple[int, int]], is_unknown: Sequence[bool], fits: int, drops_symbols: bool
) -> Unread:
    """Compare a prompt with its tokens.

    Args:
        prompt: as it was tokenized.
        offsets: character span of each token, without start and end tokens.
        is_unknown: for each token, whether it stands for something that the vocabulary lacks.
        fits: how many of the tokens the encoder takes.
        drops_symbols: whether characters without a token are dropped symbols, as a word-level tokenizer drops them;
            punctuation is dropped without being named.
    """
    start_of_cut = _start_of_word(prompt, offsets[fits][0]) if len(offsets) > fits else len(prompt)
    numbers = [match.span(match.lastgroup or 0) for match in _WEIGHT.finditer(prompt)]
    found = [span for span, unknown in zip(offsets[:fits], is_unknown, strict=False) if unknown]
    if drops_symbols:
        found += _dropped_symbols(prompt[:start_of_cut], offsets)
    spans = [span for span in sorted(found) if not any(start <= span[0] < stop for start, stop in numbers)]
    words = (_visible(prompt[start:stop]) for start, stop in spans)
    return Unread(prompt[start_of_cut:].strip(), tuple(dict.fromkeys(filter(None, words))), not offsets)


def unread_warnings(unread: Unread, reader: str, max_tokens: int) -> list[str]:
    """Sentences for the prompt's author. `reader` names the text encoder, which takes `max_tokens` tokens."""
    warnings = []
    if unread.is_all:
        warnings.append(f"{reader} reads nothing of it")
    if unread.cut:
        warnings.append(f"{reader} reads {max_tokens} tokens, cut off: {_quote(unread.cut, _QUOTED_CUT)}")
    if unread.unknown:
        words = ", ".join(_quote(word, _QUOTED_WORD) for word in unread.unknown[:_LISTED_WORDS])
        warnings.append(f"{reader} does not know {words}{' ...' if len(unread.unknown) > _LISTED_WORDS else ''}")
    return warnings


def weight_warnings(prompt: str) -> list[str]:
    """One hint for prompts that weight words, which no encoder here supports."""
    match = _WEIGHT.search(prompt)
    if match is None:
        return []
    return [f"weights such as {_quote(match[0], _QUOTED_WORD)} are not supported and read as plain text"]


def _start_of_word(prompt: str, at: int) -> int:
    """Where the word at a position starts: a cut may fall within a word."""
    while 0 < at < len(prompt) and prompt[at].isalnum() and prompt[at - 1].isalnum():
        at -= 1
    return at


def _dropped_symbols(prompt: str, offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    covered = {index for start, stop in offsets for index in range(start, stop)}
    for index, character in enumerate(prompt):
        if index not in covered and ord(character) > 127 and unicodedata.category(character).startswith("S"):
            yield index, index + 1


def _visible(word: str) -> str:
    """Without white space at the ends, control characters and bare modifiers, which a message would not show."""
    shown = "".join(c for c in word if unicodedata.category(c)[0] != "C" and not "\ufe00" <= c <= "\ufe0f")
    return shown.strip()


def _quote(text: str, limit: int) -> str:
    return repr(text if len(text) <= limit else f"{text[:limit]} ...")
