"""One update rule for all schedulers, and the table of numbers that it reads.

Step k of a sampler, with `x` the state and `pred` the denoiser's output for `c_in * x` at `timesteps[k]`:

    x0 = a * x + b * pred                                                          the estimate of the clean latents
    x' = c_x * x + c_0 * x0 + c_k * clamp(x0, -1, 1) + c_1 * x0_previous + c_n * noise

A step reads nothing but its eight numbers, so the rows of a batch may be at different steps of different schedulers.
"""

from typing import NamedTuple

import torch
from torch import Tensor

COEFFICIENTS = ("c_in", "a", "b", "c_x", "c_0", "c_k", "c_1", "c_n")  # columns of SamplerTable.coeffs
_C_IN, _A, _B, _C_X, _C_0, _C_K, _C_1, _C_N = range(len(COEFFICIENTS))


class SamplerTable(NamedTuple):
    """All numbers of one request's sampler."""

    init_sigma: float  # standard deviation of the first latents
    timesteps: Tensor  # [T] float32, input of the denoiser
    coeffs: Tensor  # [T, 8] float64, columns as in COEFFICIENTS


class StepResult(NamedTuple):
    """The state after one step, and the clean estimate that the next step takes as `x0_previous`."""

    x: Tensor  # [R, ...] float32
    x0: Tensor  # [R, ...] float32


def model_input(x: Tensor, coeffs: Tensor) -> Tensor:
    """The state scaled for the denoiser.

    Args:
        x: [R, ...].
        coeffs: [R, 8] float64 or float32, one row of a table per member.
    """
    return _columns(coeffs, x)[_C_IN] * x


def sampler_step(
    x: Tensor, prediction: Tensor, x0_previous: Tensor | None, noise: Tensor | None, coeffs: Tensor
) -> StepResult:
    """One update of a whole batch, in float32; float64 coefficients are rounded once.

    A row's result does not depend on its neighbours, to the last bit: a term with factor zero adds an exact zero. So
    `x0_previous` and `noise` of rows that do not use them must be finite. Coefficients on an accelerator are not looked
    at, which would make the host wait: there every term that is given is computed.

    Args:
        x: [R, ...] the state.
        prediction: [R, ...] the (guided) output of the denoiser.
        x0_previous: [R, ...] `x0` of the step before; None if every row takes its first step.
        noise: [R, ...] standard normal; None if no row needs it (`needs_noise`).
        coeffs: [R, 8] float64 or float32, one row of a table per member, on the device of `x`.
    """
    x = x.float()
    c = _columns(coeffs, x)
    x0 = c[_A] * x + c[_B] * prediction.float()
    result = c[_C_X] * x + c[_C_0] * x0
    if _may_use(coeffs, _C_K):
        result = result + c[_C_K] * x0.clamp(-1, 1)
    if x0_previous is not None:
        result = result + c[_C_1] * x0_previous
    else:
        assert coeffs.is_cuda or not _may_use(coeffs, _C_1), "a row of the batch needs x0_previous"
    if noise is not None:
        result = result + c[_C_N] * noise
    else:
        assert coeffs.is_cuda or not needs_noise(coeffs), "a row of the batch needs noise"
    return StepResult(result, x0)


def needs_noise(coeffs: Tensor) -> bool:
    """Whether any of these steps [..., 8] adds noise. DDIM with eta > 0 and the SDE solver do at nearly every step."""
    return bool((coeffs[..., _C_N] != 0).any())


def noisy_steps(table: SamplerTable) -> list[bool]:
    """Which steps of a schedule add noise."""
    return (table.coeffs[:, _C_N] != 0).tolist()


def _may_use(coeffs: Tensor, column: int) -> bool:
    """Whether any row uses a term; on an accelerator always True."""
    return coeffs.is_cuda or bool((coeffs[:, column] != 0).any())


def _columns(coeffs: Tensor, x: Tensor) -> list[Tensor]:
    """The eight columns of [R, 8], float32, each shaped to be multiplied with x [R, ...]."""
    assert coeffs.shape == (x.shape[0], len(COEFFICIENTS)), f"coeffs {tuple(coeffs.shape)} for x {tuple(x.shape)}"
    shape = (-1,) + (1,) * (x.ndim - 1)
    return [column.reshape(shape) for column in coeffs.to(x.device, torch.float32).unbind(1)]
