"""Which colour an object has, by name.

A pixel belongs to the palette colour whose shaded versions are nearest to it; the renderer's light scales a colour by
0.45 to 1. A composite object also has parts with fixed colours, such as a bed's wood or a train's wheels. So the named
colour is compared with what true objects of that noun show of it when another colour is named. For single shapes, which
have no such parts, the result is the most common colour.

Axes: N objects, V views, S pixels of a side, P foreground pixels, C colours of the palette, K nouns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.procedural.object_words import ObjectWords
from training.data.procedural.palette import PALETTE
from training.data.procedural.render import AMBIENT

OPAQUE = 0.5  # pixels with more alpha are foreground
_USUAL_SPREAD = 0.02  # least deviation of a colour's share, so that stray pixels do not count
_PRESENT = 0.6  # two colours of a pattern must together cover this share of the foreground, and the lesser one
_LESSER = 0.15  # this share


@dataclass(frozen=True)
class ColourRule:
    """Colours that may be named, and what true objects of each noun show of them anyway."""

    names: tuple[str, ...]
    nouns: tuple[str, ...]
    usual: Tensor  # [K, C] mean share of the foreground when another colour is named
    spread: Tensor  # [K, C] its standard deviation

    def seen_colour(self, views: Tensor, noun: str) -> str:
        """Colour of one object [V, 4, S, S] judged as a `noun`; "none" if nothing is opaque."""
        shares = colour_shares(views, self.names)
        if not float(shares.sum()):
            return "none"
        row = self.nouns.index(noun)
        excess = (shares - self.usual[row]) / (self.spread[row] + _USUAL_SPREAD)
        return self.names[int(excess.argmax())]

    def is_right(self, views: Tensor, words: ObjectWords) -> bool:
        """Whether one object [V, 4, S, S] has the colour, or the two colours, that its words name."""
        assert words.colour, "no colour was asked for"
        if not words.second_colour:
            return self.seen_colour(views, words.shape) == words.colour
        shares = colour_shares(views, self.names)
        both = shares[[self.names.index(words.colour), self.names.index(words.second_colour)]]
        others = float(shares.sum() - both.sum())
        return bool(both.sum() >= _PRESENT and both.min() >= _LESSER and others < float(both.sum()))


def fit_colour_rule(
    views: Tensor, words: Sequence[ObjectWords], names: tuple[str, ...], nouns: tuple[str, ...]
) -> ColourRule:
    """Learn from true plain objects [N, V, 4, S, S] what each noun shows of colours that are not named."""
    shares = torch.stack([colour_shares(one, names) for one in views])  # [N, C]
    usual, spread = torch.zeros(len(nouns), len(names)), torch.zeros(len(nouns), len(names))
    for row, noun in enumerate(nouns):
        for column, name in enumerate(names):
            others = [i for i, told in enumerate(words) if told.shape == noun and told.colour != name]
            usual[row, column] = shares[others, column].mean()
            spread[row, column] = shares[others, column].std(correction=0)
    return ColourRule(names, nouns, usual, spread)


def colour_shares(views: Tensor, names: tuple[str, ...]) -> Tensor:
    """Share of each named colour in the foreground of one object [V, 4, S, S] -> [C]; zeros without foreground."""
    labels = pixel_colours(views, names)
    labels = labels[labels >= 0]
    return torch.bincount(labels, minlength=len(names)) / max(len(labels), 1)


def pixel_colours(views: Tensor, names: tuple[str, ...]) -> Tensor:
    """Nearest named colour of every pixel, [..., 4, S, S] -> [..., S, S] index into `names`, -1 on the background."""
    colours = torch.tensor([PALETTE[name] for name in names])  # [C, 3]
    pixels = views.movedim(-3, -1).float()  # [..., S, S, 4]
    opaque = pixels[..., 3] > OPAQUE
    rgb = pixels[opaque][:, :3]  # [P, 3]
    shade = (rgb @ colours.T / colours.square().sum(dim=1)).clamp(AMBIENT, 1.0)  # [P, C]
    distance = (rgb[:, None] - shade[..., None] * colours).norm(dim=-1)  # [P, C]
    labels = torch.full(opaque.shape, -1)
    labels[opaque] = distance.argmin(dim=1)
    return labels
