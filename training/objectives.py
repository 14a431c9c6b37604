"""What a denoiser is asked for: noising, target, clean estimate, weights, for every noise process and prediction.

A process is a table of `alpha` and `sigma`: the noisy latents at row t are ``alpha_t x0 + sigma_t e``. Arguments named
`times` are rows of that table, [B], one per object and shared by its views; latents are [B, V, C, h, w].
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffsplat.backbones import NoiseSchedule
from diffsplat.backbones.spec import Prediction
from diffsplat.sampling.schedulers import alphas_cumprod, shift_sigma
from training.config.objective import ObjectiveOptions


@dataclass(frozen=True)
class Objective:
    """Variance preserving (Ho et al. 2020), the same preconditioned as in EDM (Karras et al. 2022), or a rectified flow
    (Esser et al. 2024); epsilon, v (Salimans & Ho 2022), x0 or velocity prediction.
    """

    prediction: Prediction
    options: ObjectiveOptions
    alpha: Tensor  # [T] float64
    sigma: Tensor  # [T] float64
    timesteps: Tensor  # [T] float32, what the network is told

    @classmethod
    def of(cls, schedule: NoiseSchedule, options: ObjectiveOptions) -> "Objective":
        """Objective of a schedule.

        Raises:
            ValueError: an option does not exist for the schedule's process; the message names it.
        """
        steps = schedule.num_train_timesteps
        if schedule.process == "flow":
            if options.edm:
                raise ValueError("objective.edm = True: must be False for a flow, which `on_clean` preconditions")
            grid = 1.0 - np.arange(steps) / steps
            sigma = torch.from_numpy(shift_sigma(grid, schedule.shift))
            return cls(schedule.prediction_type, options, 1.0 - sigma, sigma, (sigma * steps).float())
        flow_only = {"density": "uniform", "weighting": "none", "on_clean": False}
        for name, value in flow_only.items():
            if getattr(options, name) != value:
                raise ValueError(
                    f"objective.{name} = {getattr(options, name)!r}: must be {value!r} for the process "
                    f"{schedule.process!r}"
                )
        abar = torch.from_numpy(alphas_cumprod(schedule).copy())
        timesteps = torch.arange(steps, dtype=torch.float32)
        return cls(schedule.prediction_type, options, abar.sqrt(), (1.0 - abar).sqrt(), timesteps)

    @property
    def compares_clean(self) -> bool:
        """Whether the loss compares clean estimates, and not the network's own predictions."""
        return self.options.edm or self.options.on_clean

    def sample_t(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` rows of the table by the density of the options.

        Stratified: one draw in each of `count` equal parts of the density's mass, in random order.
        """
        uniform = torch.rand(count, generator=generator)
        if self.options.stratified:
            uniform = (torch.randperm(count, generator=generator) + uniform) / count
        return self.times_at(self.density(uniform.double()))

    def density(self, uniform: Tensor) -> Tensor:
        """Positions in the table, 0 .. 1, at quantiles `uniform` [B] of the density (Esser et al. 2024, 3.1)."""
        options = self.options
        if options.density == "logit_normal":
            return torch.sigmoid(options.logit_mean + options.logit_std * torch.special.ndtri(uniform))
        if options.density == "mode":
            bend = torch.cos(0.5 * math.pi * uniform).square() - 1.0 + uniform
            return 1.0 - uniform - options.mode_scale * bend
        return uniform

    def times_at(self, positions: Tensor) -> Tensor:
        """Rows at positions 0 .. 1 of the table: [B] int64."""
        steps = len(self.sigma)
        return (positions * steps).long().clamp(0, steps - 1)

    def network_timesteps(self, times: Tensor) -> Tensor:
        """What the network is told, [B] float32."""
        return self.timesteps.to(times.device)[times]

    def add_noise(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Noisy latents; in EDM's scale, ``x0 + (sigma / alpha) e``, where the options ask for it."""
        alpha, sigma = self._scales(times, clean)
        return clean + (sigma / alpha) * noise if self.options.edm else alpha * clean + sigma * noise

    def network_input(self, noisy: Tensor, times: Tensor) -> Tensor:
        """Noisy latents as the network gets them."""
        return self._scales(times, noisy)[0] * noisy if self.options.edm else noisy

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What `prediction` should return."""
        if self.compares_clean or self.prediction == "sample":
            return clean
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "velocity":
            return noise - clean
        alpha, sigma = self._scales(times, clean)
        return alpha * noise - sigma * clean

    def compared(self, noisy: Tensor, output: Tensor, times: Tensor) -> Tensor:
        """What the loss compares with `target`: the network's output, or the clean estimate that it implies."""
        return self.clean_estimate(noisy, output, times) if self.compares_clean else output

    def clean_estimate(self, noisy: Tensor, output: Tensor, times: Tensor) -> Tensor:
        """The clean latents x0 that an output of the network implies."""
        if self.prediction == "sample":
            return output
        alpha, sigma = self._scales(times, noisy)
        if self.prediction == "velocity":
            return noisy - sigma * output
        if self.options.edm:
            # the same as for `alpha * noisy` below, without a division of large numbers by small ones
            if self.prediction == "epsilon":
                return noisy - (sigma / alpha) * output
            return alpha.square() * noisy - sigma * output
        if self.prediction == "epsilon":
            return (noisy - sigma * output) / alpha
        return alpha * noisy - sigma * output

    def snr(self, times: Tensor) -> Tensor:
        """``(alpha / sigma)^2``, [B] float32."""
        alpha, sigma = (table.to(times.device)[times] for table in (self.alpha, self.sigma))
        return (alpha / sigma).square().float()

    def loss_weights(self, times: Tensor) -> Tensor:
        """Weights [B] of the squared errors.

        Without min-SNR (Hang et al. 2023) 1, or ``1 / (sigma / alpha)^2`` in EDM, times the weighting of a flow. With
        it the error of the clean estimate weighs ``min(snr, gamma)``, which for epsilon is ``min(snr, gamma) / snr``,
        for v ``min(snr, gamma) / (snr + 1)``, and for a velocity ``min(snr, gamma) sigma^2``.
        """
        snr, sigma = self.snr(times), self.sigma.to(times.device)[times].float()
        gamma = self.options.min_snr_gamma
        if gamma:
            weights = snr.clamp_max(gamma)
            if not self.compares_clean:
                if self.prediction == "epsilon":
                    weights = weights / snr
                elif self.prediction != "sample":
                    weights = weights * sigma.square()
        else:
            weights = snr if self.options.edm else torch.ones_like(snr)
        if self.options.weighting == "sigma_sqrt":
            return weights / sigma.square()
        if self.options.weighting == "cosmap":
            return weights * 2.0 / (math.pi * (1.0 - 2.0 * sigma + 2.0 * sigma.square()))
        return weights

    def errors(self, noisy: Tensor, output: Tensor, target: Tensor, times: Tensor) -> Tensor:
        """Unweighted mean squared error of every object, [B], in float32."""
        compared = self.compared(noisy, output.float(), times)
        return (compared - target.float()).square().flatten(1).mean(1)

    def _scales(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scales alpha and sigma, [B, 1, ...]."""
        shape = (-1, *[1] * (like.ndim - 1))
        alpha, sigma = (table.to(times.device)[times].view(shape) for table in (self.alpha, self.sigma))
        return alpha.to(like.dtype), sigma.to(like.dtype)


class Dropped(NamedTuple):
    """Which objects lose their conditions, for classifier-free guidance."""

    text: Tensor  # [B] bool
    image: Tensor  # [B] bool, False throughout without an image condition


def drop_conditions(uniform: Tensor, rate: float, has_image: bool) -> Dropped:
    """Dropout from one uniform number per object [B], as published.

    Below `rate` the text is lost, up to ``2 rate`` text and image, up to ``3 rate`` the image; without an image
    condition the text below ``2 rate``.
    """
    image = (uniform >= rate) & (uniform < 3.0 * rate)
    return Dropped(uniform < 2.0 * rate, image if has_image else torch.zeros_like(image))


def rendering_snr_weights(objective: Objective, times: Tensor, gamma: float) -> Tensor:
    """Weights of the rendering losses of objects [B]: ``min(snr, gamma)``; 1 at gamma 0."""
    snr = objective.snr(times)
    return snr.clamp_max(gamma) if gamma else torch.ones_like(snr)
