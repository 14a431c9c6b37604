"""Sampler tables against diffusers' own schedulers, configured as the reference does, and the update rule."""

from dataclasses import replace

import pytest
import torch
from diffsplat_client.contract import SCHEDULERS
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from diffsplat.backbones import BACKBONES, PICO, SD15, NoiseSchedule
from diffsplat.sampling.guidance import guidance_scales, guide, needs_guidance
from diffsplat.sampling.schedulers import _BUILDERS, alphas_cumprod, build_sampler
from diffsplat.sampling.steps import SamplerTable, model_input, needs_noise, sampler_step

PIXART = NoiseSchedule("vp", "epsilon", "linear", 0.0001, 0.02, ddim_final_alpha_one=True, ddim_clip_x0=True)
FLOW = NoiseSchedule("flow", "velocity", shift=3.0)
VP = {
    "sd15": SD15.schedule,
    "sd15-v": replace(SD15.schedule, prediction_type="v_prediction"),
    "pixart": PIXART,
    "pixart-v": replace(PIXART, prediction_type="v_prediction"),
    "pico": PICO.schedule,
    "pico-epsilon": replace(PICO.schedule, prediction_type="epsilon"),
}
# 48: the grid differs from its closed form by one; 7, 28: do not divide 1000
STEPS = [1, 2, 3, 7, 16, 20, 28, 48, 50]
# measured: <= 8e-6 of the largest value of a step, 7e-5 for ddim on cosine betas (1 - 0.999 is inexact in float32)
TOLERANCE = 1e-4
SHAPE = (2, 3, 4)


def vp_reference(schedule: NoiseSchedule, scheduler: str):
    common = {
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.beta_schedule,
        "prediction_type": schedule.prediction_type,
        "timestep_spacing": schedule.timestep_spacing,
    }
    if scheduler == "ddim":
        return DDIMScheduler(
            **common, set_alpha_to_one=schedule.ddim_final_alpha_one, clip_sample=schedule.ddim_clip_x0, steps_offset=1
        )
    if scheduler == "edm":
        return EulerDiscreteScheduler(**common, steps_offset=1)
    return DPMSolverMultistepScheduler(**common, algorithm_type=scheduler, steps_offset=1)


def flow_reference(scheduler: str):
    if scheduler == "flow":
        return FlowMatchEulerDiscreteScheduler(shift=FLOW.shift)
    return DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW.shift, algorithm_type=scheduler
    )


def compare(table: SamplerTable, reference, steps: int, eta: float) -> float:
    """Run both on the same random predictions; largest error of any step, relative to that step's largest value."""
    reference.set_timesteps(steps)
    times = reference.timesteps[:steps]  # without the meaningless extra one of some step counts
    assert torch.allclose(table.timesteps, times.float(), rtol=1e-6, atol=0)
    assert table.init_sigma == pytest.approx(float(getattr(reference, "init_noise_sigma", 1.0)), rel=TOLERANCE)
    generator = torch.Generator().manual_seed(steps)
    theirs = torch.randn(SHAPE, generator=generator) * table.init_sigma
    ours, x0, worst = theirs, None, 0.0
    for t, coeffs in zip(times, table.coeffs, strict=True):
        rows = coeffs.expand(SHAPE[0], -1)
        if hasattr(reference, "scale_model_input"):
            seen = reference.scale_model_input(theirs, t)
            worst = max(worst, relative_error(model_input(ours, rows), seen))
        prediction, noise = torch.randn(2, *SHAPE, generator=generator)
        options = {"return_dict": False}
        if isinstance(reference, DDIMScheduler):
            options |= {"eta": eta, "variance_noise": noise if eta else None}
        elif isinstance(reference, DPMSolverMultistepScheduler):
            options |= {"variance_noise": noise}
        theirs = reference.step(prediction, t, theirs, **options)[0]
        ours, x0 = sampler_step(ours, prediction, x0, noise, rows)
        worst = max(worst, relative_error(ours, theirs))
    return worst


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", VP)
@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "sde-dpmsolver++", "edm"])
def test_vp_tables_equal_diffusers(name, scheduler, steps):
    schedule = VP[name]
    for eta in (0.0, 0.5, 1.0) if scheduler == "ddim" else (0.0,):
        table = build_sampler(schedule, scheduler, steps, eta)
        # diffusers' Euler step takes the difference of numbers as large as the first sigma, 20,291 for cosine betas, in
        # float32; the test below shows that ours does not lose these digits
        bound = max(TOLERANCE, 1e-7 * table.init_sigma)
        assert compare(table, vp_reference(schedule, scheduler), steps, eta) <= bound


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_euler_on_cosine_betas_is_closer_to_float64_than_diffusers(steps):
    schedule = PICO.schedule
    table, reference = build_sampler(schedule, "edm", steps, 0.0), vp_reference(schedule, "edm")
    reference.set_timesteps(steps)
    abar = torch.from_numpy(alphas_cumprod(schedule)[table.timesteps.long().numpy()])
    sigmas = [*((1 - abar) / abar).sqrt().tolist(), 0.0]
    generator = torch.Generator().manual_seed(0)
    ours = theirs = torch.randn(SHAPE, generator=generator) * table.init_sigma
    exact = ours.double()
    for k, t in enumerate(reference.timesteps):
        prediction = torch.randn(SHAPE, generator=generator)
        reference.scale_model_input(theirs, t)
        theirs = reference.step(prediction, t, theirs, return_dict=False)[0]
        ours = sampler_step(ours, prediction, None, None, table.coeffs[k].expand(SHAPE[0], -1)).x
        # Euler of Karras et al. 2022, algorithm 1 without churn, with the preconditioning of a v-prediction
        s = sigmas[k]
        denoised = exact / (s**2 + 1) - prediction.double() * s / (s**2 + 1) ** 0.5
        exact = exact + (exact - denoised) / s * (sigmas[k + 1] - s)
    assert relative_error(ours, exact) <= 2e-6
    assert relative_error(ours, exact) < relative_error(theirs, exact)


@pytest.mark.parametrize("steps", [2, 3, 7, 20, 28, 50])
@pytest.mark.parametrize("scheduler", ["flow", "dpmsolver++", "sde-dpmsolver++"])
def test_flow_tables_equal_diffusers(scheduler, steps):
    assert compare(build_sampler(FLOW, scheduler, steps, 0.0), flow_reference(scheduler), steps, 0.0) <= TOLERANCE


def test_ddim_previous_timestep_is_by_integer_division():
    """The quirk is visible with 30 steps: every step goes back by 33, while the grid's points are 33 or 34 apart."""
    table = build_sampler(SD15.schedule, "ddim", 30, 0.0)
    abar, t = torch.tensor(alphas_cumprod(SD15.schedule)), table.timesteps.long()
    previous = 1 - table.coeffs[:, 3] ** 2 * (1 - abar[t])  # c_x = sqrt(1 - abar') / sqrt(1 - abar)
    torch.testing.assert_close(previous, abar[(t - 33).clamp_min(0)], rtol=1e-9, atol=0)
    assert set((t[:-1] - t[1:]).tolist()) == {33, 34}


@pytest.mark.parametrize("steps", [61, 103, 121, 122])
def test_no_negative_timestep(steps):
    """Where diffusers' float arithmetic gives one timestep too many, -1, ours stops, with the last step's rule."""
    reference = vp_reference(SD15.schedule, "dpmsolver++")
    reference.set_timesteps(steps)
    assert len(reference.timesteps) == steps + 1 and reference.timesteps[-1] == -1
    table = build_sampler(SD15.schedule, "dpmsolver++", steps, 0.0)
    assert torch.equal(table.timesteps.long(), reference.timesteps[:steps])
    assert table.coeffs[-1, 3:].tolist() == [0, 1, 0, 0, 0]  # the last step returns x0


@pytest.mark.parametrize("schedule", [SD15.schedule, PICO.schedule, FLOW], ids=["sd15", "pico", "flow"])
def test_an_exact_denoiser_is_sampled_exactly(schedule):
    """With a network that always names the same clean latents, every sampler must end at them."""
    clean = torch.linspace(-2, 2, 24).reshape(SHAPE)
    for scheduler in schedule.schedulers:
        for steps in (1, 4, 20):
            table = build_sampler(schedule, scheduler, steps, 0.0)
            x, x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * table.init_sigma, None
            for coeffs in table.coeffs:
                a, b = coeffs[1:3]
                prediction = (clean - a * x.double()) / b  # x0 = a x + b pred
                x, x0 = sampler_step(x, prediction, x0, torch.zeros(SHAPE), coeffs.expand(SHAPE[0], -1))
            # ddim stops at the alpha of timestep 0, where a little noise is left: sqrt(1 - 0.99915) = 0.03 for sd15
            bound = 0.1 if scheduler == "ddim" else 2e-3
            assert (x - clean).abs().max() < bound, (scheduler, steps)


def test_rows_at_different_steps_of_different_schedules_equal_single_rows_exactly():
    tables = [
        build_sampler(SD15.schedule, "ddim", 20, 1.0),
        build_sampler(SD15.schedule, "dpmsolver++", 7, 0.0),
        build_sampler(SD15.schedule, "sde-dpmsolver++", 16, 0.0),
        build_sampler(SD15.schedule, "edm", 5, 0.0),
        build_sampler(PIXART, "ddim", 5, 0.0),
        build_sampler(FLOW, "flow", 28, 0.0),
    ]
    rows = [(table, k) for table in tables for k in (0, 2, len(table.coeffs) - 1)]
    generator = torch.Generator().manual_seed(0)
    x, prediction, previous, noise = torch.randn(4, len(rows), 4, 4, 3, 5, generator=generator)
    coeffs = torch.stack([table.coeffs[k] for table, k in rows])
    batched_input = model_input(x, coeffs)
    batched = sampler_step(x, prediction, previous, noise, coeffs)
    assert needs_noise(coeffs)
    for r in range(len(rows)):
        one = slice(r, r + 1)
        c = coeffs[one]
        single = sampler_step(
            x[one], prediction[one], previous[one] if c[0, 6] else None, noise[one] if needs_noise(c) else None, c
        )
        assert torch.equal(single.x, batched.x[one]) and torch.equal(single.x0, batched.x0[one])
        assert torch.equal(model_input(x[one], c), batched_input[one])


def test_half_precision_state_is_updated_in_float32():
    coeffs = build_sampler(SD15.schedule, "dpmsolver++", 20, 0.0).coeffs[:1]
    x, prediction = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0)).half()
    result = sampler_step(x, prediction, None, None, coeffs)
    assert result.x.dtype == result.x0.dtype == torch.float32
    assert torch.equal(result.x, sampler_step(x.float(), prediction.float(), None, None, coeffs).x)


def test_missing_noise_is_not_passed_over():
    coeffs = build_sampler(SD15.schedule, "sde-dpmsolver++", 20, 0.0).coeffs[:1]
    with pytest.raises(AssertionError, match="needs noise"):
        sampler_step(torch.zeros(1, 2), torch.zeros(1, 2), None, None, coeffs)


def test_the_products_of_a_process_are_computed_once():
    build_sampler(SD15.schedule, "sde-dpmsolver++", 20, 0.0)
    computed = alphas_cumprod.cache_info().misses
    build_sampler(SD15.schedule, "ddim", 7, 1.0)
    assert alphas_cumprod.cache_info().misses == computed


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["sd15", "sd15-v", "pixart"])
@pytest.mark.parametrize("scheduler", ["dpmsolver++", "sde-dpmsolver++"])
def test_linspace_tables_equal_diffusers(name, scheduler, steps):
    schedule = replace(VP[name], timestep_spacing="linspace")
    table = build_sampler(schedule, scheduler, steps, 0.0)
    assert compare(table, vp_reference(schedule, scheduler), steps, 0.0) <= TOLERANCE


def test_linspace_is_for_the_dpm_solvers_of_a_vp_process_alone():
    linspace = replace(SD15.schedule, timestep_spacing="linspace")
    assert build_sampler(linspace, "dpmsolver++", 4, 0.0).timesteps.tolist() == [999, 749, 500, 250]
    with pytest.raises(ValueError, match="scheduler = 'ddim': must be one of dpmsolver"):
        build_sampler(linspace, "ddim", 4, 0.0)
    with pytest.raises(ValueError, match="timestep_spacing = 'linspace': must be trailing"):
        replace(FLOW, timestep_spacing="linspace")
    with pytest.raises(ValueError, match="timestep_spacing = 'leading'"):
        replace(FLOW, timestep_spacing="leading")


@pytest.mark.parametrize(
    ("schedule", "scheduler", "steps", "eta", "message"),
    [
        (SD15.schedule, "flow", 20, 0.0, "scheduler = 'flow': must be one of ddim, dpmsolver"),
        (FLOW, "ddim", 20, 0.0, "scheduler = 'ddim': must be one of flow"),
        (SD15.schedule, "ddim", 0, 0.0, "steps = 0: must be in 1 .. 1000"),
        (SD15.schedule, "ddim", 1001, 0.0, "steps = 1001"),
        (SD15.schedule, "ddim", 20, 1.5, "eta = 1.5"),
        (SD15.schedule, "ddim", 20, float("nan"), "eta = nan"),
    ],
)
def test_bad_choices_are_named(schedule, scheduler, steps, eta, message):
    with pytest.raises(ValueError, match=message):
        build_sampler(schedule, scheduler, steps, eta)


def test_guidance():
    assert guidance_scales(7.5, 4, triangle=False, min_guidance_scale=1.0).tolist() == [7.5] * 4
    assert guidance_scales(7.0, 4, triangle=True, min_guidance_scale=1.0).tolist() == [1.0, 4.0, 7.0, 4.0]
    assert guidance_scales(5.0, 5, triangle=True, min_guidance_scale=1.0).tolist() == pytest.approx(
        [1, 3, 5, 5 - 4 / 3, 5 - 8 / 3]
    )
    assert not needs_guidance(guidance_scales(1.0, 4, triangle=False, min_guidance_scale=1.0))
    assert needs_guidance(guidance_scales(1.5, 4, triangle=True, min_guidance_scale=0.5))
    uncond, cond = torch.randn(2, 2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    scales = torch.stack([torch.full((4,), 1.0), torch.tensor([1.0, 4.0, 7.0, 4.0])])
    guided = guide(uncond, cond, scales)
    assert torch.allclose(guided[0], cond[0], atol=1e-6)
    assert torch.allclose(guided[1, 2], uncond[1, 2] + 7 * (cond[1, 2] - uncond[1, 2]))


def test_every_scheduler_of_a_process_can_be_asked_for() -> None:
    """A scheduler stands in three places: its builder, the processes that allow it, and the contract."""
    processes = {spec.schedule.process: spec.schedule for spec in BACKBONES.values()}
    allowed = {(process, name) for process, schedule in processes.items() for name in schedule.schedulers}
    assert allowed == set(_BUILDERS)
    assert {name for _, name in allowed} == set(SCHEDULERS)
