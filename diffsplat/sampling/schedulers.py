"""Every supported scheduler as a table of numbers for the update rule in `steps`.

A table is built once per request, in float64.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from diffsplat.backbones import NoiseSchedule
from diffsplat.sampling.steps import COEFFICIENTS, SamplerTable

Array = np.ndarray[Any, np.dtype[Any]]
Column = Array | float


def build_sampler(schedule: NoiseSchedule, scheduler: str, steps: int, eta: float) -> SamplerTable:
    """Table of one sampler.

    Args:
        schedule: the process that the denoiser was trained on.
        scheduler: one of `schedule.schedulers`.
        steps: number of denoiser calls T, 1 .. num_train_timesteps.
        eta: share of fresh noise in a step, 0 (no noise) .. 1 (as much as DDPM); only "ddim" reads it.

    Raises:
        ValueError: the schedule does not have the scheduler, or steps or eta are out of range.
    """
    if scheduler not in schedule.schedulers:
        raise ValueError(f"scheduler = {scheduler!r}: must be one of {', '.join(schedule.schedulers)}")
    if not 1 <= steps <= schedule.num_train_timesteps:
        raise ValueError(f"steps = {steps}: must be in 1 .. {schedule.num_train_timesteps}")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta = {eta}: must be in 0 .. 1")
    return _BUILDERS[schedule.process, scheduler](schedule, steps, eta)


@lru_cache(maxsize=32)
def alphas_cumprod(schedule: NoiseSchedule) -> Array:
    """alpha-bar of every training timestep, [num_train_timesteps] float64, read-only.

    No zero-terminal-SNR: the reference asks for it after its betas are computed, so it is never applied.
    """
    assert schedule.process == "vp", schedule.process
    n = schedule.num_train_timesteps
    if schedule.beta_schedule == "linear":
        betas = np.linspace(schedule.beta_start, schedule.beta_end, n)
    elif schedule.beta_schedule == "scaled_linear":
        betas = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, n) ** 2
    else:  # cosine (Nichol & Dhariwal 2021, equation 17), betas capped at 0.999
        alpha_bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    product = np.cumprod(1 - betas)
    product.setflags(write=False)
    return product


def _timesteps(schedule: NoiseSchedule, steps: int) -> Array:
    """Integer grid [T] from the last training timestep down, in the reference's float arithmetic."""
    n = schedule.num_train_timesteps
    if schedule.timestep_spacing == "linspace":
        return np.linspace(0, n - 1, steps + 1).round()[:0:-1].astype(np.int64)
    grid = np.arange(n, 0, -n / steps).round().astype(np.int64) - 1
    # round-off in arange gives one point too many, timestep -1, for some step counts (61, 103, 121, 122, ...): the
    # reference then runs the network once more at a meaningless time. Not kept.
    return grid[:steps]


def _ddim(schedule: NoiseSchedule, steps: int, eta: float) -> SamplerTable:
    """DDIM (Song et al. 2021, equations 12 and 16)."""
    table = alphas_cumprod(schedule)
    t = _timesteps(schedule, steps)
    # quirk kept: the previous timestep by integer division, not the next entry of the grid; the two differ when
    # `steps` does not divide 1000
    previous = t - schedule.num_train_timesteps // steps
    final = 1.0 if schedule.ddim_final_alpha_one else table[0]
    abar = table[t]
    abar_previous = np.where(previous >= 0, table[np.maximum(previous, 0)], final)
    variance = (1 - abar_previous) / (1 - abar) * (1 - abar / abar_previous)
    noise_std = eta * np.sqrt(np.maximum(variance, 0))
    # eps = (x - alpha x0) / sigma is taken from the unclipped x0 even where x0 is clipped (PixArt)
    per_eps = np.sqrt(np.maximum(1 - abar_previous - noise_std**2, 0)) / np.sqrt(1 - abar)
    alpha, sigma, alpha_previous = np.sqrt(abar), np.sqrt(1 - abar), np.sqrt(abar_previous)
    a, b = _clean_estimate(schedule, alpha, sigma)
    clipped = alpha_previous if schedule.ddim_clip_x0 else 0.0
    c_0 = alpha_previous - clipped - per_eps * alpha
    return _table(1.0, t, a=a, b=b, c_x=per_eps, c_0=c_0, c_k=clipped, c_n=noise_std)


def _edm(schedule: NoiseSchedule, steps: int, eta: float) -> SamplerTable:
    """Stock Euler on the VP betas (Karras et al. 2022). The state is x / alpha, which c_in undoes for the network."""
    t = _timesteps(schedule, steps)
    sigma = _vp_sigmas(schedule, t)
    c_in = 1 / np.sqrt(sigma[:-1] ** 2 + 1)
    estimates: dict[str, tuple[Column, Column]] = {  # (a, b) of x0 = a x + b pred, for the state x
        "epsilon": (1.0, -sigma[:-1]),
        "v_prediction": (c_in**2, -sigma[:-1] * c_in),
        "sample": (0.0, 1.0),
    }
    a, b = estimates[schedule.prediction_type]
    c_x = sigma[1:] / sigma[:-1]
    return _table(sigma[0], t, c_in=c_in, a=a, b=b, c_x=c_x, c_0=1 - c_x)


def _vp_dpm(schedule: NoiseSchedule, steps: int, eta: float, stochastic: bool) -> SamplerTable:
    t = _timesteps(schedule, steps)
    noise_to_signal = _vp_sigmas(schedule, t)
    alpha = 1 / np.sqrt(1 + noise_to_signal**2)
    sigma = noise_to_signal * alpha
    a, b = _clean_estimate(schedule, alpha[:-1], sigma[:-1])
    return _dpm_solver(t, alpha, sigma, a, b, stochastic)


def _flow_dpm(schedule: NoiseSchedule, steps: int, eta: float, stochastic: bool) -> SamplerTable:
    n = schedule.num_train_timesteps
    sigma = shift_sigma(np.linspace(0, 1 - 1 / n, steps + 1)[::-1], schedule.shift)  # ends at 0
    a, b = _clean_estimate(schedule, 1 - sigma[:-1], sigma[:-1])
    t = np.floor(sigma[:-1] * n)  # quirk kept: the network's time is cut to an integer while sigma is not
    return _dpm_solver(t, 1 - sigma, sigma, a, b, stochastic)


def _dpm_solver(t: Array, alpha: Array, sigma: Array, a: Column, b: Column, stochastic: bool) -> SamplerTable:
    """DPM-Solver++(2M), midpoint, data prediction (Lu et al. 2022, algorithm 2; SDE form as in diffusers).

    `alpha`, `sigma`: [T + 1], the last sigma is 0. The first and the last step are of first order.
    """
    steps = len(t)
    exp_minus_h = (sigma[1:] / alpha[1:]) * (alpha[:-1] / sigma[:-1])  # h = lambda_next - lambda, infinite at the end
    per_x0 = alpha[1:] * (1 - (exp_minus_h**2 if stochastic else exp_minus_h))
    c_0, c_1 = per_x0.copy(), np.zeros(steps)
    h = -np.log(exp_minus_h[:-1])
    half_over_r = h[1:] / (2 * h[:-1])  # 1 / (2 r), r = h_previous / h, of steps 1 .. T - 2
    c_1[1 : steps - 1] = -per_x0[1 : steps - 1] * half_over_r
    c_0 -= c_1
    c_x = sigma[1:] / sigma[:-1]
    if not stochastic:
        return _table(1.0, t, a=a, b=b, c_x=c_x, c_0=c_0, c_1=c_1)
    c_n = sigma[1:] * np.sqrt(1 - exp_minus_h**2)
    return _table(1.0, t, a=a, b=b, c_x=c_x * exp_minus_h, c_0=c_0, c_1=c_1, c_n=c_n)


def _flow_euler(schedule: NoiseSchedule, steps: int, eta: float) -> SamplerTable:
    """Euler on a rectified flow: x <- x + (sigma_next - sigma) v."""
    n = schedule.num_train_timesteps
    # quirk kept: the grid is shifted twice. Its lower end is already shift(1 / n), and every point is shifted again.
    sigma = shift_sigma(np.linspace(1.0, shift_sigma(np.array(1 / n), schedule.shift), steps), schedule.shift)
    sigma_next = np.append(sigma[1:], 0.0)
    a, b = _clean_estimate(schedule, 1 - sigma, sigma)
    c_x = sigma_next / sigma  # x + (s' - s) v, with v = (x - x0) / s
    return _table(1.0, sigma * n, a=a, b=b, c_x=c_x, c_0=1 - c_x)


# (process, scheduler) -> what builds its table from (schedule, steps, eta)
_BUILDERS: dict[tuple[str, str], Callable[[NoiseSchedule, int, float], SamplerTable]] = {
    ("vp", "ddim"): _ddim,
    ("vp", "dpmsolver++"): partial(_vp_dpm, stochastic=False),
    ("vp", "sde-dpmsolver++"): partial(_vp_dpm, stochastic=True),
    ("vp", "edm"): _edm,
    ("flow", "flow"): _flow_euler,
    ("flow", "dpmsolver++"): partial(_flow_dpm, stochastic=False),
    ("flow", "sde-dpmsolver++"): partial(_flow_dpm, stochastic=True),
}


def _clean_estimate(schedule: NoiseSchedule, alpha: Array, sigma: Array) -> tuple[Column, Column]:
    """(a, b) of x0 = a x + b pred where x = alpha x0 + sigma noise."""
    if schedule.prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    if schedule.prediction_type == "v_prediction":
        return alpha, -sigma
    if schedule.prediction_type == "sample":
        return 0.0, 1.0
    assert schedule.process == "flow", "a velocity prediction belongs to a flow"
    return 1.0, -sigma


def _vp_sigmas(schedule: NoiseSchedule, t: Array) -> Array:
    """Noise-to-signal ratios of the grid, and the final 0. [T + 1]."""
    abar = alphas_cumprod(schedule)[t]
    return np.append(np.sqrt((1 - abar) / abar), 0.0)


def shift_sigma(sigma: Array, shift: float) -> Array:
    """Timestep shift of SD3 (Esser et al. 2024, equation 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _table(init_sigma: float, t: Array, c_in: Column = 1.0, **columns: Column) -> SamplerTable:
    coeffs = np.zeros((len(t), len(COEFFICIENTS)))
    for name, values in {"c_in": c_in, **columns}.items():
        coeffs[:, COEFFICIENTS.index(name)] = values
    return SamplerTable(float(init_sigma), torch.from_numpy(t.astype(np.float32)), torch.from_numpy(coeffs))
