"""The moving average and the learning rate over steps equal the reference's."""

import dataclasses

import torch

from training.config import Optim
from training.ema import Ema, ema_decay
from training.optim import learning_rate


def test_moving_average(golden, assert_close):
    file = golden("ema_lr")
    options = file.config["ema_kwargs"]
    warmup = (options["use_ema_warmup"], options["inv_gamma"], options["power"])
    given, expected = file.case_in("ema"), file.out("ema")
    decays = [ema_decay(step, options["decay"], *warmup) for step in file.config["steps"]]
    assert_close(torch.tensor(decays, dtype=torch.float64), expected["decay_at_steps"], "decay_at_steps")
    used = [ema_decay(update, options["decay"], *warmup) for update in range(1, file.config["updates"] + 1)]
    assert_close(torch.tensor(used, dtype=torch.float64), expected["decay_used"], "decay_used")

    if warmup != (True, 1.0, 0.75):
        return  # runs average with the default warm-up; only the decay itself has options
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(given["param0"])
    ema = Ema(module, options["decay"])
    for value, reference in zip(given["param_seq"], expected["shadow_after_update"], strict=True):
        with torch.no_grad():
            module.weight.copy_(value)
        ema.update()
        assert_close(ema.averages[0], reference, f"average after update {ema.updates}")


def test_learning_rate(golden, assert_close):
    file = golden("ema_lr")
    options, expected = file.config["lr"], file.out("lr")["lr"]
    schedule = options["name"].removesuffix("_warmup")  # the reference always warms up
    config = dataclasses.replace(
        Optim(),
        lr=options["base_lr"],
        schedule=schedule,
        warmup_steps=options["num_warmup_steps"],
        steps=options["total_steps"],
    )
    rates = [learning_rate(step, config) for step in range(len(expected))]
    assert_close(torch.tensor(rates, dtype=torch.float64), expected, "lr")
