"""Classifier-free guidance: how strongly each view follows the prompt."""

import numpy as np
import torch
from torch import Tensor


def guidance_scales(guidance_scale: float, views: int, triangle: bool, min_guidance_scale: float) -> Tensor:
    """Guidance of every view, [V] float32.

    With `triangle` it rises from `min_guidance_scale` at view 0 to `guidance_scale` at the back and falls again:
    min, mean, max, mean for four views.
    """
    if not triangle:
        return torch.full((views,), float(guidance_scale))
    rising = views // 2 + 1
    up = np.linspace(min_guidance_scale, guidance_scale, rising)
    down = np.linspace(guidance_scale, min_guidance_scale, views - rising + 2)[1:-1]
    return torch.from_numpy(np.concatenate([up, down])).float()


def needs_guidance(scales: Tensor) -> bool:
    """Whether any scale is above 1; otherwise only the conditional branch runs."""
    return bool((scales > 1).any())


def guide(uncond: Tensor, cond: Tensor, scales: Tensor) -> Tensor:
    """Classifier-free guidance without rescaling: u + g (c - u).

    Args:
        uncond: [R, V, C, h, w].
        cond: [R, V, C, h, w].
        scales: [R, V] or [V].
    """
    return uncond + scales.to(cond)[..., None, None, None] * (cond - uncond)
