"""Whole sampling runs of the reference on the loop that is served: `DenoiseStage`, fed with the noise it drew.

All families and schedulers; text, image and ControlNet models; guidance and guess mode; Instant3D's start. A file's
cases are run one by one, and then all at once as one batch of mixed requests.
"""

import pytest
import torch

from diffsplat.sampling.steps import needs_noise
from tests.golden.pipe_runs import PipeStage, branches_first, case_options, plucker_of

PARTS = (
    "pipe_controlnet",
    "pipe_pixart_alpha_text",
    "pipe_pixart_sigma_image",
    "pipe_pixart_sigma_text",
    "pipe_sd3_image",
    "pipe_sd3_text",
    "pipe_sd_image",
    "pipe_sd_instant3d_init",
    "pipe_sd_text",
    "pipe_sdxl_text",
)


@pytest.fixture(params=PARTS)
def runs(request, golden, noise_schedule):
    """One file, and a stage for each noise schedule among its cases: `(file, {case: stage})`."""
    file = golden(request.param)
    base = file.config["scheduler_config_of_base_model"]
    stages = {}
    of_case = {}
    for case in file.cases:
        options = case_options(file, case)
        schedule = noise_schedule(base, options["prediction_type"] or None, options["common_tricks"])
        stages[schedule] = stages.get(schedule) or PipeStage(file, schedule)
        of_case[case] = stages[schedule]
    return file, of_case


def test_every_run_alone(runs, assert_close):
    file, stages = runs
    for case, stage in stages.items():
        options, out, given = case_options(file, case), file.out(case), file.case_in(case)
        rays = plucker_of(stage.spec, options)
        assert_close(rays.repeat(options["B"], 1, 1, 1)[: len(given["plucker"])], given["plucker"], f"{case} rays")
        stage.network_inputs.clear()
        started = stage.start(case)
        jobs = [job for job, _ in started]
        first = jobs[0]
        assert_close(first.sampler.timesteps, out["timesteps"], f"{case} timesteps")
        assert_close(torch.cat([job.latents for job in jobs]), out["initial_latents"], f"{case} initial latents")
        for k in range(first.steps):
            x, coeffs = torch.cat([job.latents for job in jobs]), first.sampler.coeffs[k].float()
            stage.stage.step(jobs)
            # the reference keeps the network's output, the loop what it estimates from it: a x + b output
            estimate = coeffs[1] * x + coeffs[2] * out["guided_model_output"][k]
            assert_close(torch.cat([job.x0_previous for job in jobs]), estimate, f"{case} step {k} clean estimate")
            assert_close(torch.cat([job.latents for job in jobs]), out["latents_per_step"][k], f"{case} step {k}")
        views = stage.spec.geometry.views + stage.spec.is_image_conditioned
        seen = branches_first(stage.network_inputs[0], first.rows, views)
        assert_close(seen, out["first_network_input"], f"{case} network input")
        assert len(stage.network_inputs) == int(out["num_network_calls"]), f"{case}: network calls"
        # the reference draws noise for a stochastic solver's last step even where it has no weight
        stochastic = file.config["noise_order"][case][-1].startswith("scheduler step")
        unused = int(stochastic and not needs_noise(first.sampler.coeffs[-1]))
        assert [noise.left() for _, noise in started] == [unused] * len(started), f"{case}: noise left"


def test_all_runs_at_once(runs, assert_close):
    """Requests of other schedulers, lengths, guidance and controls share every step; each equals the reference."""
    file, stages = runs
    for stage in set(stages.values()):
        jobs = {case: [job for job, _ in stage.start(case)] for case, of_case in stages.items() if of_case is stage}
        last = max(case_jobs[0].steps for case_jobs in jobs.values())
        waiting = list(jobs)[: len(jobs) > 1]  # one case joins a step late
        for k in range(last + len(waiting)):
            running = {
                case: case_jobs
                for case, case_jobs in jobs.items()
                if case_jobs[0].step < case_jobs[0].steps and (k or case not in waiting)
            }
            stage.stage.step([job for case_jobs in running.values() for job in case_jobs])
            for case, case_jobs in running.items():
                reference = file.out(case)["latents_per_step"][case_jobs[0].step - 1]
                assert_close(torch.cat([job.latents for job in case_jobs]), reference, f"{case} step {k} in a batch")
        assert all(case_jobs[0].step == case_jobs[0].steps for case_jobs in jobs.values())
