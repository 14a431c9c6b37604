"""Noising, targets, weights and caption dropout of the diffusion stage."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from diffsplat.backbones import PICO, SD15, NoiseSchedule
from training.config.objective import ObjectiveOptions
from training.objectives import Objective, drop_conditions, rendering_snr_weights

FLOW = NoiseSchedule("flow", "velocity", shift=3.0)
SCHEDULES = [
    PICO.schedule,
    SD15.schedule,
    dataclasses.replace(PICO.schedule, beta_schedule="linear", beta_end=0.02),
    dataclasses.replace(SD15.schedule, prediction_type="sample"),
    FLOW,
]
KINDS = [(schedule, ObjectiveOptions()) for schedule in SCHEDULES]
KINDS += [(schedule, ObjectiveOptions(edm=True)) for schedule in SCHEDULES[:-1]]
KINDS += [(FLOW, ObjectiveOptions(on_clean=True))]


def of(schedule: NoiseSchedule, **options: Any) -> Objective:
    return Objective.of(schedule, ObjectiveOptions(**options))


def latents(seed: int, objects: int = 6) -> torch.Tensor:
    return torch.randn(objects, 4, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def name_of(value: Any) -> str:
    if isinstance(value, NoiseSchedule):
        return f"{value.beta_schedule if value.process == 'vp' else 'flow'}-{value.prediction_type}"
    return "edm" if value.edm else "on_clean" if value.on_clean else "plain"


@pytest.mark.parametrize(("schedule", "options"), KINDS, ids=name_of)
def test_a_perfect_prediction_gives_the_clean_latents_back(schedule: NoiseSchedule, options: ObjectiveOptions) -> None:
    objective = Objective.of(schedule, options)
    clean, noise = latents(0), latents(1)
    times = torch.tensor([0, 1, 250, 500, 800, 900])
    noisy = objective.add_noise(clean, noise, times)
    perfect = Objective.of(schedule, dataclasses.replace(options, edm=False, on_clean=False))
    output = perfect.target(clean, noise, times)
    estimate = objective.clean_estimate(noisy, output, times)
    torch.testing.assert_close(estimate, clean, atol=2e-4, rtol=1e-4)
    assert objective.errors(noisy, output, objective.target(clean, noise, times), times).max() < 1e-7
    inputs = perfect.add_noise(clean, noise, times)  # whatever the scale of the noise, the network sees the same
    torch.testing.assert_close(objective.network_input(noisy, times), inputs, atol=1e-5, rtol=1e-5)


def test_noisy_latents_keep_unit_variance_and_move_from_signal_to_noise() -> None:
    objective = of(PICO.schedule)
    clean, noise = latents(0), latents(1)
    first = objective.add_noise(clean, noise, torch.zeros(6, dtype=torch.long))
    last = objective.add_noise(clean, noise, torch.full((6,), 999))
    assert abs(objective.add_noise(clean, noise, torch.full((6,), 500)).std().item() - 1) < 0.05
    torch.testing.assert_close(first, clean, atol=0.05, rtol=0)
    torch.testing.assert_close(last, noise, atol=0.01, rtol=0)


def test_a_flow_starts_from_noise_alone_and_its_shift_favours_noise() -> None:
    objective = of(FLOW)
    assert objective.sigma[0].item() == 1.0 and objective.sigma[500].item() == pytest.approx(0.75)
    assert objective.network_timesteps(torch.tensor([0, 500])).tolist() == pytest.approx([1000.0, 750.0])
    assert torch.equal(objective.add_noise(latents(0), latents(1), torch.zeros(6, dtype=torch.long)), latents(1))


def test_snr_falls_with_noise_and_matches_its_definition() -> None:
    objective = of(SD15.schedule)
    snr = objective.snr(torch.arange(1000))
    assert (snr.diff() < 0).all()
    assert snr[999].item() == pytest.approx(4.66e-3 / (1 - 4.66e-3), rel=2e-3)  # abar of SD1.5's last timestep
    assert (snr < 1).float().mean().item() == pytest.approx(0.646, abs=1e-3)
    assert of(FLOW).snr(torch.tensor([0, 500])).tolist() == pytest.approx([0.0, (0.25 / 0.75) ** 2])


@pytest.mark.parametrize(("schedule", "options"), KINDS, ids=name_of)
def test_min_snr_weighs_the_error_of_the_clean_estimate(schedule: NoiseSchedule, options: ObjectiveOptions) -> None:
    """One weight per object, for every process and prediction the same loss: ``min(snr, gamma) |x0 error|^2``."""
    gamma = 5.0
    objective = Objective.of(schedule, dataclasses.replace(options, min_snr_gamma=gamma))
    times = torch.tensor([10, 250, 400, 600, 800, 900])
    clean, noise = latents(0), latents(1)
    noisy = objective.add_noise(clean, noise, times)
    output = objective.target(clean, noise, times) + 0.1 * latents(2)
    loss = objective.errors(noisy, output, objective.target(clean, noise, times), times) * objective.loss_weights(times)
    error = (objective.clean_estimate(noisy, output, times) - clean).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, objective.snr(times).clamp_max(gamma) * error, rtol=2e-3, atol=1e-6)
    plain = Objective.of(schedule, options).loss_weights(times)
    torch.testing.assert_close(plain, objective.snr(times) if options.edm else torch.ones(6))


def test_the_rendering_loss_of_noisy_objects_weighs_less() -> None:
    for schedule in (SD15.schedule, FLOW):
        objective = of(schedule)
        times = torch.tensor([10, 990]) if schedule.process == "vp" else torch.tensor([990, 10])
        weights = rendering_snr_weights(objective, times, 1.0)
        assert weights[0] == 1.0 and weights[1] == objective.snr(times)[1] < 0.02
        assert rendering_snr_weights(objective, times, 0.0).tolist() == [1.0, 1.0]


def test_timesteps_are_stratified_uniform_and_repeatable() -> None:
    objective = of(PICO.schedule)
    drawn = objective.sample_t(50, torch.Generator().manual_seed(3))
    assert torch.equal(drawn.sort().values // 20, torch.arange(50))  # one in each of 50 equal parts
    assert not torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, objective.sample_t(50, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("stratified", [True, False])
def test_densities_of_a_flow(stratified: bool) -> None:
    """Mean noise and tails of the logit-normal density over the shifted table; the mode density favours the middle."""
    generator = torch.Generator().manual_seed(0)
    sigma = {}
    for density in ("uniform", "logit_normal", "mode"):
        objective = of(FLOW, density=density, stratified=stratified)
        sigma[density] = objective.sigma[objective.sample_t(20_000, generator)]
    logit_normal = sigma["logit_normal"]
    assert logit_normal.mean().item() == pytest.approx(0.715, abs=0.005)
    assert (logit_normal > 0.9).double().mean().item() == pytest.approx(0.137, abs=0.01)
    assert (logit_normal < 0.5).double().mean().item() == pytest.approx(0.134, abs=0.01)
    assert sigma["mode"].std() < sigma["uniform"].std()


def test_weightings_of_a_flow() -> None:
    times = torch.tensor([0, 500])  # sigma 1 and 0.75
    assert of(FLOW, weighting="sigma_sqrt").loss_weights(times).tolist() == pytest.approx([1.0, 1 / 0.75**2])
    cosmap = [2 / (math.pi * (1 - 2 * s + 2 * s * s)) for s in (1.0, 0.75)]
    assert of(FLOW, weighting="cosmap").loss_weights(times).tolist() == pytest.approx(cosmap)


def test_conditions_are_dropped_by_one_number_per_object() -> None:
    uniform = torch.tensor([0.0, 0.049, 0.051, 0.099, 0.101, 0.149, 0.151, 0.99])
    text, image = drop_conditions(uniform, 0.05, has_image=True)
    assert text.tolist() == [True] * 4 + [False] * 4
    assert image.tolist() == [False] * 2 + [True] * 4 + [False] * 2
    text, image = drop_conditions(uniform, 0.05, has_image=False)
    assert text.tolist() == [True] * 4 + [False] * 4 and not image.any()
    assert drop_conditions(torch.rand(100), 0.5, has_image=False).text.all()
    assert not drop_conditions(torch.zeros(3), 0.0, has_image=True).image.any()


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (FLOW, {"edm": True}, "objective.edm = True: must be False for a flow"),
        (SD15.schedule, {"density": "mode"}, "objective.density = 'mode': must be 'uniform' for the process 'vp'"),
        (SD15.schedule, {"weighting": "cosmap"}, "objective.weighting = 'cosmap': must be 'none'"),
        (SD15.schedule, {"on_clean": True}, "objective.on_clean = True: must be False for the process 'vp'"),
    ],
)
def test_an_option_of_another_process_is_refused(schedule: NoiseSchedule, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(schedule, **options)
