"""DenoiseJob: one request between two steps of `denoise`. Its tensors lie on the device of the denoiser.

Axes: V views, C latent channels, h w latent pixels, T steps, K steps that add noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffsplat.backends.transfer import to_device, to_host
from diffsplat.denoisers.control_inputs import ControlInputs
from diffsplat.denoisers.graph_inputs import RequestInputs
from diffsplat.sampling.noise import NoiseSource
from diffsplat.sampling.steps import SamplerTable, noisy_steps
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.errors import NotFiniteError


@dataclass(frozen=True)
class StepTables:
    """What a request's steps take besides the network, on the device, and what the host knows of it without looking."""

    coeffs: Tensor  # [T, 8] float32
    timesteps: Tensor  # [T] float32
    noise: Tensor | None  # [K, V, C, h, w]; None where no step adds any
    noise_of_step: tuple[int | None, ...]  # index into `noise`, None for a step that adds none

    @classmethod
    def draw(cls, table: SamplerTable, source: NoiseSource, shape: torch.Size, device: torch.device) -> "StepTables":
        """Draw the noise of all steps that add any, in their order, and move everything."""
        noisy = noisy_steps(table)
        drawn = [source.draw(shape) for is_noisy in noisy if is_noisy]
        number = iter(range(len(drawn)))
        return cls(
            to_device(table.coeffs.float(), device),
            to_device(table.timesteps, device),
            to_device(torch.stack(drawn), device) if drawn else None,
            tuple(next(number) if is_noisy else None for is_noisy in noisy),
        )


@dataclass(eq=False)
class DenoiseJob:
    """One request between two steps. What does not change with the step is computed and moved when it starts."""

    envelope: Envelope
    sampler: SamplerTable  # on the host
    tables: StepTables
    guidance: Tensor  # [V]
    guided: bool  # two rows (unconditional, conditional) instead of the conditional one
    plucker: Tensor  # [rows, V, 6, h, w]
    inputs: RequestInputs  # of text, time and condition image
    control: ControlInputs | None
    network: str  # what an error says of the denoiser
    latents: Tensor  # [V, C, h, w]
    x0_previous: Tensor  # [V, C, h, w]; zeros before the first step
    finite_steps: Tensor  # [] int64, steps so far whose result was finite
    step: int = 0

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.tables.noise_of_step)

    @property
    def rows(self) -> int:
        """Rows in the network's batch."""
        return 2 if self.guided else 1

    @property
    def noise(self) -> Tensor | None:
        """Noise of the coming step [V, C, h, w]; None if it adds none."""
        index = self.tables.noise_of_step[self.step]
        return None if index is None or self.tables.noise is None else self.tables.noise[index]

    def result(self) -> Tensor:
        """The finished latents [V, C, h, w], on the device. The host waits until they have been computed.

        Raises:
            NotFiniteError: a step made values that are not finite; the first one is named.
        """
        assert self.step == self.steps, f"step {self.step} of {self.steps}"
        finite = int(to_host(self.finite_steps))
        if finite < self.steps:
            raise NotFiniteError(
                f"step {finite + 1} of {self.steps} gave latents that are not finite ({self.network}): other options, "
                "or a bundle exported in a precision with a larger range, may help"
            )
        return self.latents
