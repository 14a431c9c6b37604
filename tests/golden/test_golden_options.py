"""The checks of reference files read every option: files of this folder with other ones, their values by numpy."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.golden.ema_lr import check_learning_rate, check_moving_average
from tests.golden.files import open_golden, part_of
from tests.golden.published_losses import flow_losses, vp_losses
from tests.golden.train_loss import check_file

EDM = {"edm_style_training": True}
RENDER = {"num_views": 6, "rendering_loss_prob": 1.0}


@pytest.fixture
def rewritten(golden, tmp_path):
    """`rewritten(part, change)`: the file after `change(config, tensors)`, written and opened again."""

    def write(part, change):
        file = golden(part, or_default=True)
        config, tensors = copy.deepcopy(file.config), {name: t.clone() for name, t in file.tensors.items()}
        change(config, tensors)
        path = tmp_path / f"{part}.safetensors"
        save_file(tensors, path, {"part": part_of(file.path), "config": json.dumps(config)})
        return open_golden(path)

    return write


def with_options(case, formula, options, draw=None, **facts):
    """A change of one case of a training loss: other options, the other cases are left out."""

    def change(config, tensors):
        config["cases"] = {case: {**config["cases"][case], **facts, "opt": options}}
        for name in list(tensors):
            if name.split("/")[1] != case:
                del tensors[name]
        if draw:
            tensors[f"in/{case}/{draw}"] = torch.special.ndtr(tensors.pop(f"in/{case}/normal_draw"))
        given, out = (
            {name.split("/")[2]: t.numpy() for name, t in tensors.items() if name.startswith(kind)}
            for kind in ("in/", "out/")
        )
        formula(
            {name: np.float64(v) if v.dtype == np.float32 else v for name, v in given.items()},
            config["cases"][case],
            out,
        )
        tensors |= {f"out/{case}/{name}": torch.from_numpy(values.copy()) for name, values in out.items()}

    return change


@pytest.mark.parametrize(
    ("case", "options", "facts"),
    [
        ("epsilon", {}, {}),
        ("epsilon", {}, {"base": "pixart"}),
        ("epsilon", {"prediction_type": "sample"}, {}),
        ("epsilon", {"cfg_rate": 0.2}, {}),
        ("v_prediction", {"prediction_type": "v_prediction", "cfg_rate": 0.0}, {}),
        ("edm_epsilon", EDM, {"base": "pixart"}),
        ("edm_epsilon", {**EDM, "prediction_type": "v_prediction"}, {}),
        ("edm_epsilon", {**EDM, "prediction_type": "sample"}, {}),
        ("epsilon_min_snr5", {"snr_gamma": 0.5}, {}),
        ("v_min_snr5", {"prediction_type": "v_prediction", "snr_gamma": 1.0}, {"base": "pixart"}),
        ("image_cond_dropout", {"view_concat_condition": True, "input_concat_binary_mask": True, "cfg_rate": 0.02}, {}),
        ("image_cond_dropout", {"view_concat_condition": True, "prediction_type": "epsilon"}, {"base": "pixart"}),
        ("render", RENDER, {}),
        ("render", {**RENDER, "lpips_weight": 0.5, "lpips_resize": 0, "coord_weight": 2.0, "normal_weight": 0.3}, {}),
        ("render", {**RENDER, "lpips_resize": 9, "render_weight": 0.3, "diffusion_weight": 2.0}, {"vae_scaling": 0.5}),
        ("render", {**RENDER, "snr_gamma_rendering": 2.0}, {"vae_shift": 0.1}),
    ],
)  # fmt: skip
def test_losses_of_vp_with_other_options(rewritten, assert_close, case, options, facts):
    check_file(rewritten("train_loss_sd", with_options(case, vp_losses, options, **facts)), False, assert_close)


@pytest.mark.parametrize(
    ("case", "options", "draw"),
    [
        ("logit_normal", {}, None),
        ("logit_normal", {"logit_mean": -0.5, "logit_std": 0.7}, None),
        ("logit_normal", {"weighting_scheme": "sigma_sqrt"}, "uniform_draw"),
        ("logit_normal", {"weighting_scheme": "cosmap"}, "uniform_draw"),
        ("logit_normal", {"weighting_scheme": "none"}, "uniform_draw"),
        ("logit_normal", {"weighting_scheme": "mode"}, "uniform_draw"),
        ("logit_normal", {"weighting_scheme": "mode", "mode_scale": 0.8, "cfg_rate": 0.25}, "uniform_draw"),
        ("precondition_outputs", {"precondition_outputs": True, "weighting_scheme": "sigma_sqrt"}, "uniform_draw"),
        ("logit_normal_image", {"view_concat_condition": True, "cfg_rate": 0.02, "logit_std": 2.0}, None),
        ("render", {**RENDER, "lpips_weight": 1.5, "render_weight": 0.5, "precondition_outputs": True}, None),
    ],
)  # fmt: skip
def test_losses_of_flows_with_other_options(rewritten, assert_close, case, options, draw):
    check_file(rewritten("train_loss_sd3", with_options(case, flow_losses, options, draw)), True, assert_close)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focal_gamma": 2.0}, r"the diffusion loss does not have \['focal_gamma'\]"),
        ({"prediction_type": "score"}, "does not have prediction_type = 'score'"),
        ({"weighting_scheme": "sine"}, "does not have weighting_scheme = 'sine'"),
    ],
)
def test_unknown_options_of_losses_are_refused(rewritten, assert_close, options, message):
    def change(config, tensors):
        config["cases"]["epsilon"]["opt"] = options

    with pytest.raises(AssertionError, match=message):
        check_file(rewritten("train_loss_sd", change), False, assert_close)


@pytest.mark.parametrize(
    "options",
    [
        {"decay": 0.9, "use_ema_warmup": False},
        {"decay": 0.6, "use_ema_warmup": True, "inv_gamma": 2.0, "power": 0.5},
        {"decay": 0.9999, "min_decay": 0.4, "power": 2 / 3},
        {"decay": 0.99, "update_after_step": 2, "inv_gamma": 0.5, "foreach": False},
    ],
)  # fmt: skip
def test_moving_averages_with_other_options(rewritten, assert_close, options):
    def decay(update):
        k = max(0, update - options.get("update_after_step", 0) - 1)
        if k == 0:
            return 0.0
        grown = 1.0 - (1.0 + k / options.get("inv_gamma", 1.0)) ** -options.get("power", 0.75)
        if not options.get("use_ema_warmup", True):
            return options["decay"]
        return max(options.get("min_decay", 0.0), min(grown, options["decay"]))

    def change(config, tensors):
        config["ema_kwargs"] = options
        shadow, rows = tensors["in/ema/param0"].double().numpy(), []
        used = [decay(update) for update in range(1, config["updates"] + 1)]
        for share, values in zip(used, tensors["in/ema/param_seq"].double().numpy(), strict=True):
            shadow = share * shadow + (1.0 - share) * values
            rows.append(shadow)
        at_steps = [decay(step) for step in config["steps"]]
        for name, values in (("decay_used", used), ("decay_at_steps", at_steps), ("shadow_after_update", rows)):
            reference = tensors[f"out/ema/{name}"]
            tensors[f"out/ema/{name}"] = torch.tensor(np.array(values), dtype=reference.dtype)

    check_moving_average(rewritten("ema_lr", change), assert_close)


@pytest.mark.parametrize("name", ["cosine_warmup", "constant_warmup", "constant", "linear_decay"])
def test_learning_rates_of_other_schedules(rewritten, assert_close, name):
    def rate(step):
        warm = min(1.0, step / 3)
        decayed = (step - 3) / (9 - 3)
        return {
            "constant": 1.0,
            "constant_warmup": warm,
            "cosine_warmup": warm if step < 3 else 0.5 * (1.0 + math.cos(math.pi * decayed)),
            "linear_decay": 1.0 - step / 9,
        }[name]

    def change(config, tensors):
        config["lr"] = {"base_lr": 3e-4, "name": name, "num_warmup_steps": 3, "total_steps": 9}
        dtype = tensors["out/lr/lr"].dtype
        tensors["out/lr/lr"] = torch.tensor([3e-4 * rate(step) for step in range(9)], dtype=dtype)

    check_learning_rate(rewritten("ema_lr", change), assert_close)


@pytest.mark.parametrize(
    ("options", "lr", "message"),
    [
        ({"half_life": 3}, {}, r"the moving average does not have \['half_life'\]"),
        ({}, {"name": "one_cycle"}, "the learning rate does not have name = 'one_cycle'"),
        ({}, {"num_cycles": 2}, r"the learning rate does not have \['num_cycles'\]"),
    ],
)
def test_unknown_options_of_averages_and_rates_are_refused(rewritten, assert_close, options, lr, message):
    def change(config, tensors):
        config["ema_kwargs"] |= options
        config["lr"] |= lr

    file = rewritten("ema_lr", change)
    with pytest.raises(AssertionError, match=message):
        check_moving_average(file, assert_close)
        check_learning_rate(file, assert_close)
