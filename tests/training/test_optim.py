"""Parameter groups, learning rate, clipping, moving average."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from training.config.common import Optim
from training.ema import Ema, ema_decay
from training.optim import build_optimizer, decay_groups, learning_rate


def network() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1))


def test_only_matrices_and_kernels_decay() -> None:
    model = network()
    decayed, kept = decay_groups([model], 0.05)
    assert decayed["weight_decay"] == 0.05 and kept["weight_decay"] == 0.0
    assert {id(p) for p in decayed["params"]} == {id(model[1].weight), id(model[3].weight)}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_frozen_parameters_never_reach_the_optimiser() -> None:
    model = network()
    model[1].requires_grad_(False)
    optimizer = build_optimizer(decay_groups([model], 0.05), Optim())
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}


def test_learning_rate_rises_from_zero_then_stays_or_falls_to_zero() -> None:
    cosine = Optim(lr=4e-4, steps=3000, warmup_steps=1000, schedule="cosine")
    rates = [learning_rate(step, cosine) for step in (0, 500, 1000, 2000, 3000)]
    assert rates == pytest.approx([0.0, 2e-4, 4e-4, 2e-4, 0.0], abs=1e-12)
    constant = Optim(lr=1e-4, steps=3000, warmup_steps=1000, schedule="constant")
    assert [learning_rate(step, constant) for step in (500, 1000, 2999)] == pytest.approx([5e-5, 1e-4, 1e-4])
    assert learning_rate(0, Optim(warmup_steps=0, lr=1.0)) == 1.0


def test_ema_decay_follows_the_warm_up_of_the_published_runs() -> None:
    published = {1: 0.0, 10: 0.8222, 100: 0.9684, 1000: 0.9944, 10_000: 0.999, 13_020: 0.99918, 10**9: 0.9999}
    assert {update: round(ema_decay(update), len(str(value)) - 2) for update, value in published.items()} == published


def test_ema_decay_has_a_floor_and_a_late_start() -> None:
    """As diffusers' EMAModel, but for the reference's constant decay without warm-up."""
    options = {"max_decay": 0.9, "min_decay": 0.5, "update_after_step": 3}
    reference = EMAModel(
        [torch.zeros(1)], decay=0.9, min_decay=0.5, update_after_step=3, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    for update in range(1, 60):
        assert ema_decay(update, **options) == reference.get_decay(update), update
    assert [ema_decay(update, warmup=False, **options) for update in (4, 5)] == [0.0, 0.9]
    model = nn.Linear(1, 1)
    ema = Ema(model, **options)
    for update in range(1, 5):
        with torch.no_grad():
            model.weight.fill_(update)
        ema.update()
        assert ema.averages[0] == update  # follows until update 4
    with torch.no_grad():
        model.weight.fill_(5)
    ema.update()
    assert ema.averages[0] == 4.5  # the floor: 1 - 2 ** -0.75 is less than a half


def test_ema_equals_the_recurrence_and_swaps_in_and_back() -> None:
    model = nn.Linear(3, 2, bias=False)
    ema = Ema(model)
    expected = model.weight.detach().double().clone()
    for update in range(1, 6):
        with torch.no_grad():
            model.weight.add_(0.1 * update)
        ema.update()
        decay = ema_decay(update)
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    live = model.weight.detach().clone()
    ema.swap()
    torch.testing.assert_close(model.weight.double(), expected, atol=1e-6, rtol=1e-6)
    ema.swap()
    assert torch.equal(model.weight, live)
