"""The performance table: what the published networks cost, and how much of it ours may cost.

Counted as `counter` counts, on the reference's own networks in bf16 on the meta device (torch 2.13, diffusers 0.42.1):
a step has four views and both guidance branches, attention over all views, text repeated for every view. T5 reads 300
padded tokens for each branch, as PixArt-Sigma's scripts give it; image encoder and ElevEst look at one image, the
splat decoders and GSRecon at four views.
"""

from collections.abc import Mapping
from typing import NamedTuple

from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.splats.gsrecon import GSRECON


class Reference(NamedTuple):
    """One figure of the table."""

    tflop: float
    roofline_ms: float | None = None


_EVERYWHERE = {
    "decoder": Reference(2.494, 3.19),
    "tiny_decoder": Reference(0.144, 0.19),
    "image_encoder": Reference(0.274, 0.35),
    "elevest": Reference(0.047),
    GSRECON: Reference(0.72),  # given as "about"
}
_CLIP_L, _CLIP_BIG_G = Reference(0.027, 0.06), Reference(0.196, 0.36)

# backbone -> stage -> its figure; other backbones have those of `_EVERYWHERE` alone
_TABLE: Mapping[str, Mapping[str, Reference]] = {
    "sd15": {"text_encoder": _CLIP_L, STEP: Reference(1.625, 2.16)},
    "sd15_image": {"text_encoder": _CLIP_L, STEP: Reference(2.108, 2.75)},
    "pixart_sigma": {"text_encoder": Reference(5.627, 7.14), STEP: Reference(2.867, 3.67)},
    "sd35": {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_BIG_G, STEP: Reference(4.891, 6.54)},
}

# backbone -> the most that all steps and what is computed once for them may cost, over the table's step times steps
BARS: Mapping[str, float] = {"sd15": 0.99, "pixart_sigma": 0.85}
BAR_PROMPT_TOKENS = 16  # of the prompt that the bars hold for; a longer one may cost more


def reference(backbone: str) -> Mapping[str, Reference]:
    """Stage -> its figure, for stages that the table has."""
    return {**_EVERYWHERE, **_TABLE.get(backbone, {})}
