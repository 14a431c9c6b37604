"""What `encode` makes of a request's images for `denoise`."""

from typing import NamedTuple

from torch import Tensor


class ImageFeatures(NamedTuple):
    """What `denoise` needs of a request's images; None where there are none."""

    condition_latents: Tensor | None = None  # [C, h, w]
    hint: Tensor | None = None  # [3, H, W] in [0, 1]
    start_moments: Tensor | None = None  # [2, V, C, h, w] mean and standard deviation of Instant3D's start
