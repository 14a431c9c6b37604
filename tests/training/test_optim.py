"""Parameter groups, learning rate, clipping, moving average."""

import dataclasses

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from diffsplat.backbones import BACKBONES
from diffsplat.denoisers.interface import build_denoiser
from diffsplat.denoisers.unet import DenoiserStep, TextContext
from diffsplat.splats.gsrecon import build_gsrecon
from diffsplat.text.encoders import build_encoder
from training.config.common import Optim
from training.data.stream import BatchStream
from training.ema import Ema, ema_decay
from training.optim import (
    build_optimizer,
    decay_groups,
    enable_gradient_checkpointing,
    freeze_all_but,
    learning_rate,
    scaled_groups,
    set_learning_rate,
    updates_per_epoch,
)


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
    optimizer = build_optimizer(scaled_groups(decay_groups([model], 0.05), model, ()), Optim())
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}


def test_learning_rate_rises_from_zero_then_stays_or_falls_to_zero() -> None:
    cosine = Optim(lr=4e-4, steps=3000, warmup_steps=1000, schedule="cosine")
    rates = [learning_rate(step, cosine) for step in (0, 500, 1000, 2000, 3000)]
    assert rates == pytest.approx([0.0, 2e-4, 4e-4, 2e-4, 0.0], abs=1e-12)
    constant = Optim(lr=1e-4, steps=3000, warmup_steps=1000, schedule="constant")
    assert [learning_rate(step, constant) for step in (500, 1000, 2999)] == pytest.approx([5e-5, 1e-4, 1e-4])
    assert learning_rate(0, Optim(warmup_steps=0, lr=1.0)) == 1.0
    line = Optim(lr=1.0, steps=30, warmup_steps=10, schedule="linear")
    assert [learning_rate(step, line) for step in (5, 10, 20, 30)] == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_updates_of_an_epoch_are_those_of_the_published_runs() -> None:
    """265,232 or 83,296 objects, 8 processes; batch and accumulation per stage."""
    for objects, batch, accumulation, updates in (
        (265_232, 8, 1, 4144), (265_232, 2, 4, 4145), (83_296, 8, 1, 1301), (83_296, 8, 2, 651), (83_296, 2, 8, 651),
    ):  # fmt: skip
        stream = BatchStream([None] * objects, batch, 0, 7, 8)  # type: ignore[arg-type]
        assert updates_per_epoch(stream.batches_per_epoch, accumulation) == updates


def test_only_modules_that_are_named_are_trained() -> None:
    model = nn.ModuleDict({"encoder": network(), "decoder": network()})
    model["encoder"][1].requires_grad_(False)
    freeze_all_but(model, ())
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 12
    freeze_all_but(model, ("encoder", "r.2"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    left = {name for name, _ in model["encoder"].named_parameters(prefix="encoder")}
    assert trained == left - {"encoder.1.weight", "encoder.1.bias"} | {"decoder.2.weight", "decoder.2.bias"}
    with pytest.raises(ValueError, match=r"optim.trainable = 'attn': is in no module's name; some are encoder.0, "):
        freeze_all_but(model, ("decoder", "attn"))


def test_learning_rates_are_scaled_by_parameter_name_and_group() -> None:
    model = nn.ModuleDict({"backbone": network(), "head": network()})
    groups = decay_groups([model], 0.05)
    split = scaled_groups(groups, model, (("backbone.1", 0.5), ("backbone", 0.1)))
    assert sum(len(group["params"]) for group in split) == len(list(model.parameters()))
    optimizer = build_optimizer(split, Optim())
    set_learning_rate(optimizer, 2.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            factor = 0.5 if "backbone.1" in name else 0.1 if "backbone" in name else 1.0
            assert group["lr"] == 2.0 * factor, name
            assert group["weight_decay"] == (0.05 if name.endswith(("1.weight", "3.weight")) else 0.0), name
    with pytest.raises(ValueError, match="optim.lr_multipliers = 'tail': is in no trained parameter's name; some: "):
        scaled_groups(groups, model, (("tail", 0.5),))


def test_gradient_checkpointing_turns_on_each_network_and_changes_no_gradient() -> None:
    spec = BACKBONES["pico"]
    torch.manual_seed(0)
    trained = nn.ModuleDict({"gsrecon": build_gsrecon(spec), "denoiser": build_denoiser(spec)})
    encoder = dataclasses.replace(
        spec.text.encoders[0], config={**spec.text.encoders[0].config, "vocab_size": 8, "eos_token_id": 2}
    )
    trained["text_encoder"] = build_encoder(encoder)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)
        trained.zero_grad()
        grid = trained["gsrecon"].predict(torch.rand(1, 4, 9, 32, 32), torch.randn(1, 4, 6, 32, 32))
        step = DenoiserStep(trained["denoiser"], 4)
        context = TextContext(trained["denoiser"])(trained["text_encoder"](torch.ones(1, 5, dtype=torch.int64)))
        size = spec.latent_size
        noisy, plucker = torch.randn(1, 4, spec.latent_channels, size, size), torch.randn(1, 4, 6, size, size)
        prediction = step(noisy, plucker, torch.ones(1), context)
        (grid.square().mean() + prediction.square().mean()).backward()
        return [parameter.grad.clone() for parameter in trained.parameters()]

    trained.train()
    before = gradients()
    enable_gradient_checkpointing(trained)
    parts = {
        "gsrecon": trained["gsrecon"].transformer.blocks[0],
        "denoiser": trained["denoiser"].down_blocks[0].resnets[0],
        "text_encoder": trained["text_encoder"].text_model.encoder.layers[0].mlp,
    }
    calls: list[str] = []
    for name, part in parts.items():
        part.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    after = gradients()
    assert {name: calls.count(name) for name in parts} == dict.fromkeys(parts, 2)  # once more in the backward pass
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
    with pytest.raises(ValueError, match="optim.gradient_checkpointing: no network of this stage"):
        enable_gradient_checkpointing(network())


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
