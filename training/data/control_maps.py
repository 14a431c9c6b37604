"""Control maps of training: what a ControlNet is shown of view 0. Serving makes the same of a user's picture.

All maps are RGB in [0, 1] on white, [3, S, S]; S is the spec's `hint_size`.
"""

import torch
from torch import Tensor

from diffsplat.backbones.spec import ControlType
from diffsplat.images.prepare import canny_hint, resize_antialiased


def control_map(
    kind: ControlType, image_rgb: Tensor, normals: Tensor | None, depths: Tensor | None, alphas: Tensor, size: int
) -> Tensor:
    """The map of one view.

    Args:
        kind: normal, depth or canny.
        image_rgb: [3, H, W] in [0, 1] on white; canny needs it.
        normals: [3, H, W] ``n * 0.5 + 0.5`` on white; normal needs them.
        depths: [1, H, W] planar depth, 0 on the background; depth needs them.
        alphas: [1, H, W] in [0, 1].
        size: S.

    Raises:
        ValueError: the object has no map of the kind.
    """
    if kind == "canny":
        return canny_hint(image_rgb, size)
    given = {"normal": normals, "depth": depths}[kind]
    if given is None:
        raise ValueError(f"control = {kind!r}: the data has no {kind} maps")
    whole = given if kind == "normal" else depth_map(given, alphas)
    return resize_antialiased(whole[None], size)[0].clamp(0, 1)


def depth_map(depths: Tensor, alphas: Tensor) -> Tensor:
    """Near is bright, far is dark, the background white: [1, H, W], [1, H, W] -> [3, H, W].

    Divided by the view's largest depth, so that the map does not depend on the unit.
    """
    covered = depths * alphas
    return (1.0 - covered / covered.max().clamp_min(torch.finfo(covered.dtype).tiny)).expand(3, -1, -1)
