"""`denoise`: text embeddings -> latents of the four views, one step at a time for any number of requests.

Axes: J jobs (requests), R rows of the network's batch (one per job, two where guidance needs the unconditional half),
V views, C latent channels, h w latent pixels.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffsplat_client.errors import InvalidRequestError
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle
from diffsplat.cameras import generated_view_cameras, latent_plucker
from diffsplat.denoiser import STEP, RequestInputs, batch_key, join_rows, prepare, request_graphs, step_input_names
from diffsplat.runtime import ExportRecord, Graph, TorchGraph, load_graph
from diffsplat.samplers import (
    SamplerTable,
    build_sampler,
    guidance_scales,
    guide,
    model_input,
    needs_guidance,
    needs_noise,
    sampler_step,
)
from diffsplat.serving.checks import check_range, check_shape
from diffsplat.serving.encode import check_scheduler
from diffsplat.serving.envelope import Envelope
from diffsplat.text_features import TextFeatures


class DenoiseWork(NamedTuple):
    """One request as it comes from `encode`."""

    envelope: Envelope
    text: TextFeatures  # two rows: prompt, negative prompt


@dataclass(eq=False)
class DenoiseJob:
    """One request between two steps. What does not change with the step is computed when it starts."""

    envelope: Envelope
    sampler: SamplerTable
    guidance: Tensor  # [V]
    guided: bool  # two rows (unconditional, conditional) instead of the conditional one
    plucker: Tensor  # [rows, V, 6, h, w]
    inputs: RequestInputs  # of text and time
    generator: torch.Generator
    latents: Tensor  # [V, C, h, w]
    x0_previous: Tensor  # [V, C, h, w]; zeros before the first step
    step: int = 0
    noise: Tensor | None = None  # of the coming step, kept until the step has succeeded

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.sampler.timesteps)

    @property
    def rows(self) -> int:
        """Rows in the network's batch."""
        return 2 if self.guided else 1

    def next_noise(self) -> Tensor:
        """Noise of the coming step, drawn once. Zeros where the sampler adds none, which draws nothing either."""
        if self.noise is None:
            if needs_noise(self.sampler.coeffs[self.step]):
                self.noise = torch.randn(self.latents.shape, generator=self.generator)
            else:
                self.noise = torch.zeros_like(self.latents)
        return self.noise


class _BatchConstants(NamedTuple):
    """Inputs that stay the same while the same jobs run together."""

    jobs: tuple[DenoiseJob, ...]
    inputs: dict[str, Tensor]  # of the denoiser, by name, R rows each
    cond_rows: Tensor  # [J]
    guided_jobs: Tensor  # [G] indices into jobs
    guidance: Tensor  # [G, V]


class DenoiseStage:
    """Starts jobs and steps them together; the `StepModel` of the engine."""

    def __init__(self, spec: BackboneSpec, graphs: Mapping[str, Graph]) -> None:
        """`graphs`: the step, and those of `denoiser.request_graphs`, by name."""
        self.spec = spec
        self.graphs = graphs
        self._step_inputs = step_input_names(spec)
        self._constants: dict[int, _BatchConstants] = {}  # by `batch_key`

    @classmethod
    def load(cls, folder: str | os.PathLike[str], threads: int | None = None) -> "DenoiseStage":
        """From a version folder. BundleError names a file that is missing or damaged."""
        spec = ExportRecord.read(folder).spec
        return cls(spec, {name: load_graph(folder, name, threads) for name in (*request_graphs(spec), STEP)})

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "DenoiseStage":
        """Straight from a bundle, run by torch; all graphs share one network."""
        from diffsplat.networks import build_graph_module  # heavy: see there

        network = bundle.load("denoiser")
        names = (*request_graphs(bundle.spec), STEP)
        return cls(
            bundle.spec,
            {name: TorchGraph(name, build_graph_module(name, bundle.spec, network)) for name in names},
        )

    def check(self, work: DenoiseWork) -> None:
        """Refuse bad input before it is queued. InvalidRequestError names tensor, value and what is allowed."""
        check_scheduler(work.envelope.request, self.spec)
        text, (embeddings, mask, pooled) = self.spec.text, work.text
        check_shape("TEXT_EMBEDDINGS", embeddings, (2, (1, text.tokens), text.width))
        check_range("TEXT_EMBEDDINGS", embeddings)
        check_shape("TEXT_MASK", mask, (2, embeddings.shape[1]))
        if not bool(mask.any(dim=1).all()):
            raise InvalidRequestError("TEXT_MASK: every row must keep at least one token")
        check_shape("POOLED_TEXT", pooled, (2, text.pooled_width))
        check_range("POOLED_TEXT", pooled)

    def start(self, work: DenoiseWork) -> DenoiseJob:
        """Everything that is computed once per request; draws the first noise."""
        request, geometry = work.envelope.request, self.spec.geometry
        assert request.scheduler and request.steps and request.seed is not None and request.eta is not None
        assert request.guidance_scale is not None and request.elevation_deg is not None and request.distance is not None
        sampler = build_sampler(self.spec.schedule, request.scheduler, request.steps, request.eta)
        guidance = guidance_scales(
            request.guidance_scale, geometry.views, request.triangle_guidance, request.min_guidance_scale
        )
        guided = needs_guidance(guidance)
        rows = [1, 0] if guided else [0]  # (negative, prompt) or (prompt,)
        text = TextFeatures(*(values[rows] for values in work.text))
        cameras = generated_view_cameras(request.elevation_deg, request.distance, geometry.views)
        plucker = latent_plucker(cameras, geometry, self.spec.latent_size)
        generator = torch.Generator().manual_seed(request.seed)
        shape = (geometry.views, self.spec.latent_channels, self.spec.latent_size, self.spec.latent_size)
        latents = torch.randn(shape, generator=generator) * sampler.init_sigma
        return DenoiseJob(
            envelope=work.envelope,
            sampler=sampler,
            guidance=guidance,
            guided=guided,
            plucker=plucker.expand(len(rows), *plucker.shape),
            inputs=prepare(self.spec, self.graphs, text, sampler.timesteps),
            generator=generator,
            latents=latents,
            x0_previous=torch.zeros_like(latents),
        )

    def step(self, states: Sequence[DenoiseJob]) -> None:
        """One step of every job. Jobs whose texts fit together run as one batch."""
        batches: dict[int, list[DenoiseJob]] = {}
        for job in states:
            batches.setdefault(batch_key(job.inputs), []).append(job)
        results = [(jobs, *self._step_batch(key, jobs)) for key, jobs in batches.items()]
        for jobs, latents, x0 in results:  # nothing was changed so far, so that a failed step can be repeated
            for i, job in enumerate(jobs):
                job.latents, job.x0_previous, job.noise = latents[i], x0[i], None
                job.step += 1

    def _step_batch(self, key: int, jobs: list[DenoiseJob]) -> tuple[Tensor, Tensor]:
        """New latents and clean estimates, each [J, V, C, h, w]."""
        constants = self._constants.get(key)
        if constants is None or constants.jobs != tuple(jobs):
            constants = self._constants[key] = _batch_constants(jobs)
        rows_per_job = torch.tensor([job.rows for job in jobs])
        latents = torch.stack([job.latents for job in jobs])  # [J, V, C, h, w]
        coeffs = torch.stack([job.sampler.coeffs[job.step] for job in jobs])  # [J, 8]
        timesteps = torch.stack([job.sampler.timesteps[job.step] for job in jobs])  # [J]
        inputs = {
            **constants.inputs,
            "latents": model_input(latents, coeffs).float().repeat_interleave(rows_per_job, dim=0),
            "timesteps": timesteps.float().repeat_interleave(rows_per_job),
        }
        for name in jobs[0].inputs.stepwise:
            inputs[name] = torch.cat([job.inputs.stepwise[name][:, job.step] for job in jobs])
        predictions = self.graphs[STEP](*(inputs[name] for name in self._step_inputs))  # [R, V, C, h, w]
        prediction = predictions[constants.cond_rows]  # [J, V, C, h, w]
        if len(constants.guided_jobs):
            cond = constants.cond_rows[constants.guided_jobs]
            prediction[constants.guided_jobs] = guide(predictions[cond - 1], predictions[cond], constants.guidance)
        noise = torch.stack([job.next_noise() for job in jobs]) if needs_noise(coeffs) else None
        return sampler_step(latents, prediction, torch.stack([job.x0_previous for job in jobs]), noise, coeffs)


def _batch_constants(jobs: list[DenoiseJob]) -> _BatchConstants:
    rows = torch.tensor([job.rows for job in jobs])
    guided = torch.tensor([i for i, job in enumerate(jobs) if job.guided], dtype=torch.int64)
    guidance = torch.stack([job.guidance for job in jobs])[guided]
    inputs = {"plucker": torch.cat([job.plucker for job in jobs]), **join_rows([job.inputs for job in jobs])}
    return _BatchConstants(tuple(jobs), inputs, rows.cumsum(0) - 1, guided, guidance)
