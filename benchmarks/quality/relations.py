"""Whether the two objects of a scene are arranged as the prompt says, judged by where their colours are.

Both named colours must cover a fair share of the foreground. Then front and back view decide. "On top of": in both, the
centre of the first colour is above that of the second, by more than they are apart sideways. "Next to": they are
farther apart sideways than vertically, and change sides between front and back.
"""

import torch
from torch import Tensor

from benchmarks.quality.colour import pixel_colours
from training.data.procedural.object_words import ObjectWords

_PRESENT = 0.08  # of the foreground, over all views
_APART = 0.12  # of the image side


def is_arranged(views: Tensor, words: ObjectWords, names: tuple[str, ...]) -> bool:
    """Judge one scene, [V, 4, S, S]: view 0 is the front, view V / 2 the back."""
    labels = pixel_colours(views, names)  # [V, S, S]
    first, second = (labels == names.index(colour) for colour in (words.colour, words.other_colour))
    foreground = max(int((labels >= 0).sum()), 1)
    if min(int(first.sum()), int(second.sum())) < _PRESENT * foreground:
        return False
    facing = [0, len(views) // 2]
    if not all(bool(mask[view].any()) for mask in (first, second) for view in facing):
        return False
    offsets = [(_centre(first[view]) - _centre(second[view])).tolist() for view in facing]
    (right, down), (right_behind, down_behind) = offsets
    if words.relation == "on top of":
        return all(below < -_APART and abs(aside) < -below for aside, below in offsets)
    farther_aside = min(abs(right), abs(right_behind)) > max(abs(down), abs(down_behind), _APART)
    return farther_aside and right * right_behind < 0


def _centre(mask: Tensor) -> Tensor:
    """Mean pixel of a mask [S, S] in units of its side: (right, down)."""
    rows, columns = mask.nonzero().float().mean(dim=0) / mask.shape[-1]
    return torch.stack([columns, rows])
