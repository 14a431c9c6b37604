"""The record of a composite object, and the random choices made while one is built."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from training.data.procedural.palette import PALETTE, Rgb
from training.data.procedural.parts import Parts

ANY = tuple(PALETTE)
BRIGHT = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "pink", "magenta")


class Draw:
    """The random choices of one object and its main colour."""

    def __init__(self, rng: np.random.Generator, main: Rgb) -> None:
        self._rng = rng
        self.main = main

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return float(self._rng.uniform(low, high))

    def chance(self, share: float) -> bool:
        """True with the given probability."""
        return bool(self._rng.random() < share)

    def one_of(self, *colours: Rgb) -> Rgb:
        """One of the colours."""
        return colours[int(self._rng.integers(len(colours)))]


class Composite(NamedTuple):
    """How an object is built and what it is called."""

    build: Callable[[Draw], Parts]
    colours: tuple[str, ...] = ()  # colours that captions may name; if empty, the object always has its natural colours
    natural: tuple[str, ...] = ()  # main colours when the caption names no colour; if empty, those of `colours`
    nouns: tuple[str, ...] = ()  # other names
    symmetric: bool = False  # looks the same from all sides, so that its yaw is free
