"""Start from a dark blob on white instead of pure noise (Instant3D, Li et al. 2024, section 3.2). Off by default.

blob_views -> ImageEncoder.moments, one draw -> clean latents -> late_start(...).noised -> the sampler's last steps
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffsplat.backbones import NoiseSchedule
from diffsplat.sampling.schedulers import alphas_cumprod, build_sampler
from diffsplat.sampling.steps import COEFFICIENTS, SamplerTable

VIEWS = 4  # two by two on the blob's image


class LateStart(NamedTuple):
    """The last steps of a sampler, and how its first state is made of clean latents and noise."""

    table: SamplerTable
    signal: float
    noise: float

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """First state, from clean latents and standard normal noise of the same shape."""
        return self.signal * latents + self.noise * noise


def blob_views(size: int, std: float, background: float) -> Tensor:
    """The four quarters of a two by two sheet with a blob at the centre of each, [4, 3, H, W] in [0, 1].

    Args:
        size: pixels along a side of one view.
        std: width of the blob, fraction of the sheet's side, > 0.
        background: grey that is subtracted from the white around the blob, 0 .. 1.

    Raises:
        ValueError: std or background out of range.
    """
    if not std > 0:
        raise ValueError(f"init_std = {std}: must be above 0")
    if not 0 <= background <= 1:
        raise ValueError(f"init_background = {background}: must be in 0 .. 1")
    sheet = 2 * size
    squares = (torch.arange(sheet) - sheet / 2) ** 2
    bell = torch.exp(-(squares[:, None] + squares[None, :]) / (2 * (std * sheet) ** 2))
    one = 1 - (bell / bell.max() + background).clamp(0, 1)
    tiled = one.repeat(2, 2)[None, None]
    full = F.interpolate(tiled, size=(sheet, sheet), mode="bilinear", align_corners=False)  # [1, 1, 2H, 2W]
    quarters = full.reshape(2, size, 2, size).transpose(1, 2).reshape(VIEWS, 1, size, size)
    return quarters.expand(-1, 3, -1, -1)


def kept_steps(steps: int, strength: float) -> int:
    """How many of a sampler's last steps are taken."""
    return min(int(steps * strength), steps)


def late_start(schedule: NoiseSchedule, scheduler: str, steps: int, eta: float, strength: float) -> LateStart:
    """The last `int(steps * strength)` steps of a sampler.

    Args:
        schedule: the process that the denoiser was trained on.
        scheduler: one of `schedule.schedulers`.
        steps: of the whole sampler.
        eta: as in `build_sampler`.
        strength: share of the steps that is kept, 0 .. 1.

    Raises:
        ValueError: as `build_sampler`, or no step is kept.
    """
    table = build_sampler(schedule, scheduler, steps, eta)
    kept = kept_steps(steps, strength)
    if kept < 1:
        raise ValueError(f"init_noise_strength = {strength}: keeps no step, must be in {1 / steps:g} .. 1")
    coeffs = table.coeffs[steps - kept :].clone()
    # the first step that is taken has no x0 of a step before: first order, c_0 takes the whole weight
    c_0, c_1 = COEFFICIENTS.index("c_0"), COEFFICIENTS.index("c_1")
    coeffs[0, c_0] += coeffs[0, c_1]
    coeffs[0, c_1] = 0
    timesteps = table.timesteps[steps - kept :]
    signal, noise = _mix(schedule, scheduler, coeffs[0], int(timesteps[0]))
    return LateStart(SamplerTable(1.0, timesteps, coeffs), signal, noise)


def _mix(schedule: NoiseSchedule, scheduler: str, coeffs: Tensor, timestep: int) -> tuple[float, float]:
    """Weights of clean latents and noise in the state before a step."""
    if schedule.process == "flow":
        sigma = -float(coeffs[COEFFICIENTS.index("b")])  # x0 = x - sigma v
        return 1 - sigma, sigma
    alpha_bar = float(alphas_cumprod(schedule)[timestep])
    if scheduler == "edm":  # the state is x / alpha
        return 1.0, float(np.sqrt((1 - alpha_bar) / alpha_bar))
    return float(np.sqrt(alpha_bar)), float(np.sqrt(1 - alpha_bar))
