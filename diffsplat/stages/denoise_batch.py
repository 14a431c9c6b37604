"""StepBatch: jobs that make their steps together, as rows of the denoiser's batch.

A job has one row, or two where guidance needs the unconditional one, which comes first. Everything is made of slices
whose bounds the host knows, so that nothing here moves a tensor between devices or waits for one.

Axes: J jobs, R rows, padding included, V views, C latent channels, h w latent pixels.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.denoisers.buckets import Buckets
from diffsplat.denoisers.control_inputs import add_residuals, join_controls
from diffsplat.denoisers.graph_inputs import STEP, join_rows, step_input_names
from diffsplat.graph import Graph
from diffsplat.sampling.guidance import guide
from diffsplat.sampling.steps import StepResult, model_input, sampler_step
from diffsplat.stages.denoise_job import DenoiseJob


class StepBatch:
    """What stays the same while the same jobs run together, and one step of them."""

    def __init__(self, spec: BackboneSpec, jobs: Sequence[DenoiseJob], buckets: Buckets | None) -> None:
        """`jobs`: at least one, of one `batch_key`. `buckets`: of the batch's size; None: as many rows as jobs have."""
        self.jobs = tuple(jobs)
        self._names = step_input_names(spec)
        self._counts = [job.rows for job in jobs]
        self._ends = list(accumulate(self._counts))
        rows = self._ends[-1]
        self._spare = buckets.pad_rows(rows) - rows if buckets is not None else 0
        longest = max((length for job in jobs for length in job.inputs.lengths), default=0)
        tokens = buckets.pad_tokens(longest) if buckets is not None and longest else None
        joined = {
            "plucker": torch.cat([job.plucker for job in jobs]),
            **join_rows([job.inputs for job in jobs], tokens),
        }
        self._constant = {name: self._padded([values]) for name, values in joined.items()}
        self._guidance = torch.stack([job.guidance for job in jobs]) if any(job.guided for job in jobs) else None
        self._control = None
        if spec.controls:
            controls = [job.control for job in jobs]
            self._control = join_controls(spec, controls, self._counts, self._constant["plucker"], buckets)

    def step(self, graphs: Mapping[str, Graph]) -> tuple[StepResult, Tensor]:
        """New state and clean estimates, each [J, V, C, h, w], and how many steps were finite [J]. Changes no job."""
        jobs = self.jobs
        latents = torch.stack([job.latents for job in jobs])
        coeffs = torch.stack([job.tables.coeffs[job.step] for job in jobs])  # [J, 8]
        timesteps = torch.stack([job.tables.timesteps[job.step] for job in jobs])  # [J]
        inputs = {
            **self._constant,
            "latents": self._rows(model_input(latents, coeffs)),
            "timesteps": self._rows(timesteps),
        }
        for name in jobs[0].inputs.stepwise:
            inputs[name] = self._padded([job.inputs.stepwise[name][:, job.step] for job in jobs])
        if self._control is not None:
            inputs["residuals"] = add_residuals(graphs, self._control, inputs)
        predictions = graphs[STEP](*(inputs[name] for name in self._names))  # [R, V, C, h, w]
        prediction = torch.stack([predictions[end - 1] for end in self._ends])  # [J, V, C, h, w]
        if self._guidance is not None:  # a job without guidance has its only row on both sides, which changes nothing
            firsts = [end - count for end, count in zip(self._ends, self._counts, strict=True)]
            prediction = guide(torch.stack([predictions[first] for first in firsts]), prediction, self._guidance)
        x0_previous = torch.stack([job.x0_previous for job in jobs])
        result = sampler_step(latents, prediction, x0_previous, self._noise(latents), coeffs)
        finite = torch.isfinite(result.x).flatten(1).all(dim=1)
        return result, torch.stack([job.finite_steps for job in jobs]) + finite

    def _noise(self, latents: Tensor) -> Tensor | None:
        """Noise of the coming step; None if no job adds any."""
        drawn = [job.noise for job in self.jobs]
        if all(noise is None for noise in drawn):
            return None
        return torch.stack([torch.zeros_like(latents[0]) if noise is None else noise for noise in drawn])

    def _rows(self, values: Tensor) -> Tensor:
        """[J, ...] -> [R, ...]."""
        same = [-1] * (values.ndim - 1)
        return self._padded([values[i : i + 1].expand(count, *same) for i, count in enumerate(self._counts)])

    def _padded(self, rows: list[Tensor]) -> Tensor:
        """Rows of all jobs as one tensor, filled up with the first row."""
        return torch.cat([*rows, *[rows[0][:1]] * self._spare])
