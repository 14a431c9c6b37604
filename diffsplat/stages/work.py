"""DenoiseWork: one request as `encode` hands it to `denoise`."""

from typing import NamedTuple

from diffsplat.stages.envelope import Envelope
from diffsplat.stages.image_features import ImageFeatures
from diffsplat.text.features import TextFeatures


class DenoiseWork(NamedTuple):
    """One request, with all that its prompts and images mean to the denoiser."""

    envelope: Envelope
    text: TextFeatures  # two rows: prompt, negative prompt
    images: ImageFeatures = ImageFeatures()
