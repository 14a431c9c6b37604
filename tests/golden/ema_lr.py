"""Compares our moving average and learning rate with a reference file; an unknown option is refused by name."""

import dataclasses

import torch

from training.config.common import Optim
from training.ema import Ema, ema_decay
from training.optim import learning_rate

# the reference's names -> ours, and whether it warms up; its one_cycle is used by no recipe
SCHEDULES = {
    "constant_warmup": ("constant", True),
    "cosine_warmup": ("cosine", True),
    "constant": ("constant", False),
    "linear_decay": ("linear", False),
}

EMA_DEFAULTS = {"use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75, "min_decay": 0.0, "update_after_step": 0}
NOT_NUMERIC = ("foreach", "model_cls", "model_config")


def check_moving_average(file, assert_close):
    """Decays, and averages of the file's parameters."""
    given_options = file.config["ema_kwargs"]
    unknown = set(given_options) - {"decay", *EMA_DEFAULTS, *NOT_NUMERIC}
    assert not unknown, f"the moving average does not have {sorted(unknown)}"
    warmup = [{**EMA_DEFAULTS, **given_options}[name] for name in EMA_DEFAULTS]
    max_decay = given_options["decay"]
    given, expected = file.case_in("ema"), file.out("ema")
    decays = [ema_decay(step, max_decay, *warmup) for step in file.config["steps"]]
    assert_close(torch.tensor(decays, dtype=torch.float64), expected["decay_at_steps"], "decay_at_steps")
    used = [ema_decay(update, max_decay, *warmup) for update in range(1, file.config["updates"] + 1)]
    assert_close(torch.tensor(used, dtype=torch.float64), expected["decay_used"], "decay_used")

    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(given["param0"])
    ema = Ema(module, max_decay, *warmup)
    for value, reference in zip(given["param_seq"], expected["shadow_after_update"], strict=True):
        with torch.no_grad():
            module.weight.copy_(value)
        ema.update()
        assert_close(ema.averages[0], reference, f"average after update {ema.updates}")


def check_learning_rate(file, assert_close):
    """Rates at all steps."""
    options, expected = file.config["lr"], file.out("lr")["lr"]
    unknown = set(options) - {"base_lr", "name", "num_warmup_steps", "total_steps"}
    assert not unknown, f"the learning rate does not have {sorted(unknown)}"
    assert options["name"] in SCHEDULES, f"the learning rate does not have name = {options['name']!r}"
    schedule, warms_up = SCHEDULES[options["name"]]
    config = dataclasses.replace(
        Optim(),
        lr=options["base_lr"],
        schedule=schedule,
        warmup_steps=options.get("num_warmup_steps", 0) if warms_up else 0,
        steps=options["total_steps"],
    )
    rates = [learning_rate(step, config) for step in range(len(expected))]
    assert_close(torch.tensor(rates, dtype=torch.float64), expected, "lr")
