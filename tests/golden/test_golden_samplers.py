"""Sampler tables against the reference: grids and noise levels, then whole runs on given network outputs."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsplat.backbones import NoiseSchedule
from diffsplat.samplers import alphas_cumprod, build_sampler, sampler_step


def noise_schedule(base: dict[str, Any], prediction_type: str | None = None) -> NoiseSchedule:
    """The process that a base model's scheduler config describes; a missing key means the scheduler class's default."""
    if base["_class_name"].startswith("FlowMatch"):
        return NoiseSchedule("flow", "velocity", shift=base["shift"], num_train_timesteps=base["num_train_timesteps"])
    return NoiseSchedule(
        "vp",
        prediction_type or base.get("prediction_type", "epsilon"),
        base["beta_schedule"],
        base["beta_start"],
        base["beta_end"],
        ddim_final_alpha_one=base.get("set_alpha_to_one", True),
        ddim_clip_x0=base.get("clip_sample", True),
        num_train_timesteps=base["num_train_timesteps"],
    )


def test_schedules(golden, assert_close):
    file = golden("schedules")
    for case in file.cases:
        base, scheduler, steps = case.split("_")
        schedule = noise_schedule(file.config["scheduler_config_of_base_model"][base])
        table = build_sampler(schedule, scheduler, int(steps), eta=0.0)
        out = file.out(case)
        assert_close(table.timesteps, out["timesteps"], f"{case} timesteps")
        # with an epsilon or velocity prediction b is minus the noise level: of x / alpha for VP, of x for flow
        if "sigmas" in out:
            assert_close(-table.coeffs[:, 2], out["sigmas"][:-1], f"{case} sigmas")
            assert table.coeffs[-1, 3] == out["sigmas"][-1] == 0, f"{case}: the last step must end without noise"
        if "init_noise_sigma" in out:
            assert_close(torch.tensor(table.init_sigma), out["init_noise_sigma"], f"{case} init sigma")
        if schedule.process == "vp":
            abar = torch.from_numpy(np.array(alphas_cumprod(schedule)))
            assert_close(abar[::37], out["alphas_cumprod_every_37"], f"{case} alphas")
            assert_close(abar[-1], out["alpha_cumprod_last"], f"{case} last alpha")
        if "final_alpha_cumprod" in out:
            c_x, t = table.coeffs[-1, 3], int(table.timesteps[-1])  # c_x = sqrt(1 - final) / sqrt(1 - abar_t)
            assert_close(1 - c_x**2 * (1 - abar[t]), out["final_alpha_cumprod"], f"{case} final alpha")


def test_scheduler_steps(golden, assert_close):
    file = golden("scheduler_steps")
    configs = file.config
    for case in file.cases:
        options = configs["cases"][case]
        given, out = file.case_in(case), file.out(case)
        base = _base_config(golden, options["base"])
        schedule = noise_schedule(base, options["prediction_type"])
        table = build_sampler(schedule, options["scheduler_type"], options["n"], options["eta"] or 0.0)
        assert_close(table.timesteps, out["timesteps"], f"{case} timesteps")
        x, x0 = given["sample"], None
        for k, coeffs in enumerate(table.coeffs):
            x, x0 = _step(x, given["model_outputs"][k], x0, given["noises"][k], coeffs)
            assert_close(x, out["prev_samples"][k], f"{case} step {k}")


def _base_config(golden, base: str) -> dict[str, Any]:
    return golden("schedules").config["scheduler_config_of_base_model"][base]


def _step(x: Tensor, prediction: Tensor, x0: Tensor | None, noise: Tensor, coeffs: Tensor) -> tuple[Tensor, Tensor]:
    """One step of all rows of x [R, ...] with the same coefficients [8]."""
    return sampler_step(x, prediction, x0, noise, coeffs.expand(len(x), -1))
