"""The features of a request's images, which `encode` hands to `denoise`."""

from typing import NamedTuple

from torch import Tensor


class ImageFeatures(NamedTuple):
    """Image features of one request; None for those that it does not have."""

    condition_latents: Tensor | None = None  # [C, h, w]
    hint: Tensor | None = None  # [3, H, W] in [0, 1]
    start_moments: Tensor | None = None  # [2, V, C, h, w] mean and standard deviation of Instant3D's start
