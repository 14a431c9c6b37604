"""The facts that a caption of a procedural object may state."""

from typing import NamedTuple


class ObjectWords(NamedTuple):
    """The facts that a caption may tell. All are strings, so that a list of them is what a file stores."""

    shape: str  # a shape or, with the rich grammar, a composite object
    colour: str  # a key of COLOURS, with the rich grammar of PALETTE; "" = no colour is told
    size: str  # a key of SIZE_WORDS
    pattern: str = "plain"
    second_colour: str = ""  # of a pattern
    relation: str = ""  # "on top of" or "next to" the other object
    other_shape: str = ""
    other_colour: str = ""
    grammar: str = "basic"  # or "rich"
