"""Sampler tables against the reference: grids and noise levels, then whole runs on given network outputs."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsplat.sampling.schedulers import alphas_cumprod, build_sampler
from diffsplat.sampling.steps import sampler_step


def test_schedules(golden, assert_close, noise_schedule):
    file = golden("schedules")
    for case in file.cases:
        base, scheduler, steps = case.rsplit("_", 2)
        schedule = noise_schedule(file.config["scheduler_config_of_base_model"][base])
        table = build_sampler(schedule, scheduler, int(steps), eta=0.0)
        out = file.out(case)
        assert_close(table.timesteps, out["timesteps"], f"{case} timesteps")
        if "sigmas" in out:
            # with an epsilon or velocity prediction b is minus the noise level: of x / alpha for VP, of x for flow
            plain = replace(schedule, prediction_type="epsilon") if schedule.process == "vp" else schedule
            sigmas = -build_sampler(plain, scheduler, int(steps), eta=0.0).coeffs[:, 2]
            assert_close(sigmas, out["sigmas"][:-1], f"{case} sigmas")
            assert table.coeffs[-1, 3] == out["sigmas"][-1] == 0, f"{case}: the last step must end without noise"
        if "init_noise_sigma" in out:
            assert_close(torch.tensor(table.init_sigma), out["init_noise_sigma"], f"{case} init sigma")
        if schedule.process == "vp":
            abar = torch.from_numpy(np.array(alphas_cumprod(schedule)))
            for name in (name for name in out if name.startswith("alphas_cumprod_every_")):
                assert_close(abar[:: int(name.rsplit("_", 1)[1])], out[name], f"{case} {name}")
            assert_close(abar[-1], out["alpha_cumprod_last"], f"{case} last alpha")
        if "final_alpha_cumprod" in out:
            # a run of one step always ends there; of others the last step may end at timestep 0
            single = build_sampler(schedule, scheduler, 1, eta=0.0)
            c_x, t = single.coeffs[0, 3], int(single.timesteps[0])  # c_x = sqrt(1 - final) / sqrt(1 - abar_t)
            assert_close(1 - c_x**2 * (1 - abar[t]), out["final_alpha_cumprod"], f"{case} final alpha")


def test_scheduler_steps(golden, assert_close, noise_schedule):
    file = golden("scheduler_steps")
    bases = _base_configs(golden)
    for case in file.cases:
        options = file.config["cases"][case]
        given, out = file.case_in(case), file.out(case)
        unknown = set(options) - {"base", "prediction_type", "common_tricks", "scheduler_type", "n", "eta"}
        assert not unknown, f"{case}: samplers do not have {sorted(unknown)}"
        tricks = options.get("common_tricks", True)
        schedule = noise_schedule(bases[options["base"]], options.get("prediction_type"), tricks)
        table = build_sampler(schedule, options["scheduler_type"], options["n"], options.get("eta") or 0.0)
        assert_close(table.timesteps, out["timesteps"], f"{case} timesteps")
        x, x0 = given["sample"], None
        for k, coeffs in enumerate(table.coeffs):
            noise = given["noises"][k] if "noises" in given else None
            x, x0 = _step(x, given["model_outputs"][k], x0, noise, coeffs)
            assert_close(x, out["prev_samples"][k], f"{case} step {k}")


def _base_configs(golden) -> dict[str, dict[str, Any]]:
    """Scheduler configs of the base models, which another file tells: one of the same folder, or of the default one."""
    return golden("schedules", or_default=True).config["scheduler_config_of_base_model"]


def _step(
    x: Tensor, prediction: Tensor, x0: Tensor | None, noise: Tensor | None, coeffs: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of all rows of x [R, ...] with the same coefficients [8]."""
    return sampler_step(x, prediction, x0, noise, coeffs.expand(len(x), -1))
