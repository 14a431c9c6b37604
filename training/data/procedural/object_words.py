"""The facts that a caption of a procedural object may state."""

from typing import NamedTuple


class ObjectWords(NamedTuple):
    """The facts that a caption may state. All are strings, so that files store them as a list."""

    shape: str  # a shape or, with the rich grammar, a composite object
    colour: str  # a key of COLOURS, or of PALETTE in the rich grammar; "" if the caption names no colour
    size: str  # a key of SIZE_WORDS
    pattern: str = "plain"
    second_colour: str = ""  # of a pattern
    relation: str = ""  # "on top of" or "next to" the other object
    other_shape: str = ""
    other_colour: str = ""
    grammar: str = "basic"  # or "rich"
    number: str = ""  # a key of COUNTS if there are several of the same shape or object and colour
