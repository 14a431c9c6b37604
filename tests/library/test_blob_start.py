"""Instant3D's start: the blob, the steps that are left, and the level of noise they begin at."""

from dataclasses import replace

import pytest
import torch

from diffsplat.backbones import SD15, NoiseSchedule
from diffsplat.sampling.blob_start import blob_views, late_start
from diffsplat.sampling.schedulers import build_sampler
from diffsplat.sampling.steps import model_input, sampler_step

FLOW = NoiseSchedule("flow", "velocity", shift=3.0)
V = NoiseSchedule("vp", "v_prediction")
SAMPLERS = [(process, name) for process in (SD15.schedule, V, FLOW) for name in process.schedulers]
every_sampler = pytest.mark.parametrize(("schedule", "name"), SAMPLERS)


def test_every_view_sees_a_dark_blob_on_white():
    views = blob_views(32, std=0.1, background=0.0)
    assert views.shape == (4, 3, 32, 32)
    assert views.min() >= 0 and views.max() <= 1
    assert (views[:, :, 15:17, 15:17] < 0.1).all() and (views[:, :, 0, 0] > 0.9).all()
    assert torch.equal(views[:, 0], views[:, 2])
    assert blob_views(32, std=0.1, background=0.3).max() == pytest.approx(0.7)


@every_sampler
def test_perfect_predictions_lead_back_to_the_clean_latents(schedule, name):
    """Whatever the sampler, a network that knows the answer finds it from the noised state."""
    if schedule.process == "vp":
        schedule = replace(schedule, ddim_final_alpha_one=True)  # else a little noise stays behind DDIM's last step
    start = late_start(schedule, name, steps=10, eta=0.0, strength=0.6)
    assert len(start.table.timesteps) == 6
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 3, generator=g)
    x, x0 = start.noised(clean, noise), None
    for coeffs in start.table.coeffs:
        a, b = coeffs[1], coeffs[2]
        prediction = ((clean - a * x) / b).float()  # x0 = a x + b prediction
        fresh = torch.randn(1, 3, generator=g)
        x, x0 = sampler_step(x, prediction, x0, fresh, coeffs[None])
        assert torch.isfinite(model_input(x, coeffs[None])).all()
    assert (x - clean).abs().max() < 1e-4


@every_sampler
def test_the_state_matches_the_level_of_its_first_step(schedule, name):
    """x0 = a x + b prediction must return the clean latents for the prediction that the process defines."""
    start = late_start(schedule, name, steps=10, eta=0.0, strength=0.6)
    c_in, a, b = (float(value) for value in start.table.coeffs[0, :3])
    clean, noise = torch.tensor([0.3, -1.2], dtype=torch.float64), torch.tensor([0.8, 0.5], dtype=torch.float64)
    scale = (start.signal**2 + start.noise**2) ** 0.5  # 1 but for "edm", whose state is not scaled, and for flows
    prediction = {
        "epsilon": noise,
        "v_prediction": (start.signal * noise - start.noise * clean) / scale,
        "velocity": noise - clean,
    }[schedule.prediction_type]
    assert torch.allclose(a * start.noised(clean, noise) + b * prediction, clean, atol=1e-6)
    if schedule.process == "vp":
        assert c_in * scale == pytest.approx(1, abs=1e-6)  # the network sees unit variance


@pytest.mark.parametrize("name", SD15.schedule.schedulers)
def test_full_strength_is_the_whole_sampler(name):
    whole = build_sampler(SD15.schedule, name, 8, 1.0)
    start = late_start(SD15.schedule, name, 8, 1.0, 1.0)
    assert torch.equal(start.table.timesteps, whole.timesteps)
    assert torch.equal(start.table.coeffs, whole.coeffs)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match=r"init_noise_strength = 0.05: .* 0.1 \.\. 1"):
        late_start(SD15.schedule, "ddim", 10, 0.0, 0.05)
    with pytest.raises(ValueError, match="init_std = 0.0"):
        blob_views(8, 0.0, 0.0)
    with pytest.raises(ValueError, match="init_background = 1.5"):
        blob_views(8, 0.1, 1.5)
