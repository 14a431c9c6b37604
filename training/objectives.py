"""What a denoiser is asked for: noising, target, clean estimate, weights. One class per noise process.

All arguments named `timesteps` are [B] long, one per object, shared by its views; latents are [B, V, C, h, w].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffsplat.backbones import NoiseSchedule
from diffsplat.sampling.schedulers import alphas_cumprod


@dataclass(frozen=True)
class VariancePreserving:
    """``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) e`` (Ho et al. 2020); epsilon or v prediction (Salimans & Ho 2022)."""

    schedule: NoiseSchedule
    abar: Tensor  # [T] float64

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> "VariancePreserving":
        """Objective of a schedule.

        Raises:
            ValueError: the schedule is not variance preserving.
        """
        if schedule.process != "vp":
            raise ValueError(f"schedule.process = {schedule.process!r} must be 'vp'")
        return cls(schedule, torch.from_numpy(alphas_cumprod(schedule).copy()))

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` timesteps, stratified: one, uniform, in each of `count` equal parts of the range, in random order."""
        offsets = torch.rand(count, generator=generator)
        places = (torch.randperm(count, generator=generator) + offsets) / count
        steps = self.schedule.num_train_timesteps
        return (places * steps).long().clamp_max(steps - 1)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents at the given timesteps."""
        signal, sigma = self._scales(timesteps, clean)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The prediction that the network should make."""
        if self.schedule.prediction_type == "epsilon":
            return noise
        signal, sigma = self._scales(timesteps, clean)
        return signal * noise - sigma * clean

    def clean_estimate(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents x0 that a prediction implies."""
        signal, sigma = self._scales(timesteps, noisy)
        if self.schedule.prediction_type == "epsilon":
            return (noisy - sigma * prediction) / signal
        return signal * noisy - sigma * prediction

    def snr(self, timesteps: Tensor) -> Tensor:
        """``abar / (1 - abar)``, [B] float32."""
        abar = self.abar.to(timesteps.device)[timesteps]
        return (abar / (1.0 - abar)).float()

    def loss_weights(self, timesteps: Tensor, min_snr_gamma: float) -> Tensor:
        """Min-SNR weights [B] (Hang et al. 2023): ``min(snr, gamma) / snr``, for v over ``snr + 1``; 1 at gamma 0."""
        snr = self.snr(timesteps)
        if not min_snr_gamma:
            return torch.ones_like(snr)
        divisor = snr if self.schedule.prediction_type == "epsilon" else snr + 1.0
        return snr.clamp_max(min_snr_gamma) / divisor

    def _scales(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.abar.to(timesteps.device)[timesteps].view(-1, *[1] * (like.ndim - 1))
        return abar.sqrt().to(like.dtype), (1.0 - abar).sqrt().to(like.dtype)


def drop_captions(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Which objects lose their caption (for classifier-free guidance): [count] bool, each with probability `share`."""
    return torch.rand(count, generator=generator) < share
