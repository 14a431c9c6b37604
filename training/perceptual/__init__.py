"""Perceptual terms: how different two images look. SSIM needs nothing; the others need a network's weights."""

from collections.abc import Callable

from torch import Tensor

from training.config.common import PerceptualTerm
from training.losses import ssim
from training.perceptual.base import Perceptual
from training.perceptual.effnet import open_effnet
from training.perceptual.lpips import find_lpips, open_lpips


class Dissimilarity(Perceptual):
    """1 - SSIM, at the images' own size."""

    def distance(self, first: Tensor, second: Tensor, size: int) -> Tensor:
        """See `Perceptual`; `size` plays no part."""
        return 1.0 - ssim(first, second)


def open_perceptual(term: PerceptualTerm) -> tuple[PerceptualTerm, Perceptual | None]:
    """The distance of a perceptual term, with the term's name once "auto" is decided.

    Raises:
        ValueError: its weights are not on this machine; the message says how to get them.
    """
    if term == "auto":
        term = "ssim" if find_lpips().missing else "lpips"
    if term == "none":
        return term, None
    openers: dict[str, Callable[[], Perceptual]] = {
        "ssim": Dissimilarity,
        "lpips": open_lpips,
        "effnet-feature": open_effnet,
    }
    return term, openers[term]()
