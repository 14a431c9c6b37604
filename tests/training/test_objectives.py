"""Noising, targets, weights and caption dropout of the diffusion stage."""

import dataclasses

import pytest
import torch

from diffsplat.backbones import PICO, SD15, NoiseSchedule
from training.objectives import VariancePreserving, drop_captions

SCHEDULES = [PICO.schedule, SD15.schedule, dataclasses.replace(PICO.schedule, beta_schedule="linear", beta_end=0.02)]


def latents(seed: int, objects: int = 6) -> torch.Tensor:
    return torch.randn(objects, 4, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.beta_schedule}-{s.prediction_type}")
def test_a_perfect_prediction_gives_the_clean_latents_back(schedule: NoiseSchedule) -> None:
    objective = VariancePreserving.of(schedule)
    clean, noise = latents(0), latents(1)
    timesteps = torch.tensor([0, 1, 250, 500, 800, 900])
    noisy = objective.add_noise(clean, noise, timesteps)
    estimate = objective.clean_estimate(noisy, objective.target(clean, noise, timesteps), timesteps)
    torch.testing.assert_close(estimate, clean, atol=2e-4, rtol=1e-4)


def test_noisy_latents_keep_unit_variance_and_move_from_signal_to_noise() -> None:
    objective = VariancePreserving.of(PICO.schedule)
    clean, noise = latents(0), latents(1)
    first = objective.add_noise(clean, noise, torch.zeros(6, dtype=torch.long))
    last = objective.add_noise(clean, noise, torch.full((6,), 999))
    assert abs(objective.add_noise(clean, noise, torch.full((6,), 500)).std().item() - 1) < 0.05
    torch.testing.assert_close(first, clean, atol=0.05, rtol=0)
    torch.testing.assert_close(last, noise, atol=0.01, rtol=0)


def test_snr_falls_with_time_and_matches_its_definition() -> None:
    objective = VariancePreserving.of(SD15.schedule)
    snr = objective.snr(torch.arange(1000))
    assert (snr.diff() < 0).all()
    assert snr[999].item() == pytest.approx(4.66e-3 / (1 - 4.66e-3), rel=2e-3)  # abar of SD1.5's last timestep
    assert (snr < 1).float().mean().item() == pytest.approx(0.646, abs=1e-3)


@pytest.mark.parametrize("schedule", [SD15.schedule, PICO.schedule], ids=["epsilon", "v"])
def test_min_snr_weights_have_one_entry_per_object(schedule: NoiseSchedule) -> None:
    objective = VariancePreserving.of(schedule)
    timesteps = torch.tensor([10, 400, 900])
    snr = objective.snr(timesteps)
    divisor = snr if schedule.prediction_type == "epsilon" else snr + 1
    torch.testing.assert_close(objective.loss_weights(timesteps, 5.0), torch.minimum(snr, torch.tensor(5.0)) / divisor)
    assert objective.loss_weights(timesteps, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_timesteps_are_stratified_uniform_and_repeatable() -> None:
    objective = VariancePreserving.of(PICO.schedule)
    drawn = objective.draw_timesteps(50, torch.Generator().manual_seed(3))
    assert torch.equal(drawn.sort().values // 20, torch.arange(50))  # one in each of 50 equal parts
    assert not torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, objective.draw_timesteps(50, torch.Generator().manual_seed(3)))


def test_captions_are_dropped_at_the_asked_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    assert drop_captions(20_000, 0.1, generator).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert not drop_captions(1000, 0.0, generator).any()
    assert drop_captions(1000, 1.0, generator).all()


def test_a_flow_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="process = 'flow'"):
        VariancePreserving.of(NoiseSchedule("flow", "velocity"))
