"""Architecture facts of every backbone. A bundle carries a copy of its own entry (`bundle.json`).

Deployment choices belong in `config.pbtxt`, training choices in the training presets.
"""

from diffsplat.backbones.pixart import PIXART_ALPHA, PIXART_SIGMA
from diffsplat.backbones.sd3 import SD3, SD35
from diffsplat.backbones.small import NANO, PICO
from diffsplat.backbones.spec import (
    BackboneSpec,
    NoiseSchedule,
    PixelRule,
    Prediction,
    SplatGeometry,
    image_conditioned,
)
from diffsplat.backbones.text import TextEncoderSpec, TextSpec
from diffsplat.backbones.unet import SD15, SD21, SDXL

__all__ = [
    "BACKBONES",
    "NANO",
    "PICO",
    "PIXART_ALPHA",
    "PIXART_SIGMA",
    "SD3",
    "SD15",
    "SD21",
    "SD35",
    "SDXL",
    "BackboneSpec",
    "NoiseSchedule",
    "PixelRule",
    "Prediction",
    "SplatGeometry",
    "TextEncoderSpec",
    "TextSpec",
    "image_conditioned",
]

_PUBLISHED = (SD15, SD21, SDXL, PIXART_ALPHA, PIXART_SIGMA, SD3, SD35)
BACKBONES: dict[str, BackboneSpec] = {
    spec.name: spec for text in (*_PUBLISHED, PICO, NANO) for spec in (text, image_conditioned(text))
}
