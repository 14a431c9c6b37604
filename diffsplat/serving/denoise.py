"""`denoise`: text embeddings -> latents of the four views, one step at a time for any number of requests.

Axes: J jobs (requests), R rows of the network's batch (one per job, two where guidance needs the unconditional half),
V views, C latent channels, h w latent pixels, L text tokens, P width of the packed text context.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle
from diffsplat.cameras import generated_view_cameras, latent_plucker
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


class DenoiseWork(NamedTuple):
    """One request as it comes from `encode`."""

    envelope: Envelope
    text_embeddings: Tensor  # [2, L, D]: prompt, negative prompt


@dataclass(eq=False)
class DenoiseJob:
    """One request between two steps. What does not change with the step is computed when it starts."""

    envelope: Envelope
    sampler: SamplerTable
    guidance: Tensor  # [V]
    guided: bool  # two rows (unconditional, conditional) instead of the conditional one
    plucker: Tensor  # [rows, V, 6, h, w]
    context: Tensor  # [rows, L, P]
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
    plucker: Tensor  # [R, V, 6, h, w]
    context: Tensor  # [R, L, P]
    cond_rows: Tensor  # [J]
    guided_jobs: Tensor  # [G] indices into jobs
    guidance: Tensor  # [G, V]


class DenoiseStage:
    """Starts jobs and steps them together; the `StepModel` of the engine."""

    def __init__(self, spec: BackboneSpec, context: Graph, denoiser: Graph) -> None:
        self.spec = spec
        self.context = context
        self.denoiser = denoiser
        self._constants: dict[int, _BatchConstants] = {}  # by number of text tokens

    @classmethod
    def load(cls, folder: str | os.PathLike[str], threads: int | None = None) -> "DenoiseStage":
        """From a version folder. BundleError names a file that is missing or damaged."""
        spec = ExportRecord.read(folder).spec
        return cls(spec, load_graph(folder, "denoiser_context", threads), load_graph(folder, "denoiser", threads))

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "DenoiseStage":
        """Straight from a bundle, run by torch; both graphs share one network."""
        from diffsplat.networks import build_graph_module  # heavy: see there

        network = bundle.load("denoiser")
        graphs = [
            TorchGraph(name, build_graph_module(name, bundle.spec, network))
            for name in ("denoiser_context", "denoiser")
        ]
        return cls(bundle.spec, *graphs)

    def check(self, work: DenoiseWork) -> None:
        """Refuse bad input before it is queued. InvalidRequestError names tensor, value and what is allowed."""
        check_scheduler(work.envelope.request, self.spec)
        text = self.spec.text_encoder
        check_shape("TEXT_EMBEDDINGS", work.text_embeddings, (2, (1, text.max_tokens), text.config["hidden_size"]))
        check_range("TEXT_EMBEDDINGS", work.text_embeddings)

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
        texts = work.text_embeddings.flip(0) if guided else work.text_embeddings[:1]  # (negative, prompt) or (prompt,)
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
            plucker=plucker.expand(len(texts), *plucker.shape),
            context=self.context(texts),
            generator=generator,
            latents=latents,
            x0_previous=torch.zeros_like(latents),
        )

    def step(self, states: Sequence[DenoiseJob]) -> None:
        """One step of every job. Jobs whose texts have equally many tokens run as one batch."""
        by_tokens: dict[int, list[DenoiseJob]] = {}
        for job in states:
            by_tokens.setdefault(job.context.shape[1], []).append(job)
        results = [(jobs, *self._step_batch(tokens, jobs)) for tokens, jobs in by_tokens.items()]
        for jobs, latents, x0 in results:  # nothing was changed so far, so that a failed step can be repeated
            for i, job in enumerate(jobs):
                job.latents, job.x0_previous, job.noise = latents[i], x0[i], None
                job.step += 1

    def _step_batch(self, tokens: int, jobs: list[DenoiseJob]) -> tuple[Tensor, Tensor]:
        """New latents and clean estimates, each [J, V, C, h, w]."""
        constants = self._constants.get(tokens)
        if constants is None or constants.jobs != tuple(jobs):
            constants = self._constants[tokens] = _batch_constants(jobs)
        rows_per_job = torch.tensor([job.rows for job in jobs])
        latents = torch.stack([job.latents for job in jobs])  # [J, V, C, h, w]
        coeffs = torch.stack([job.sampler.coeffs[job.step] for job in jobs])  # [J, 8]
        timesteps = torch.stack([job.sampler.timesteps[job.step] for job in jobs])  # [J]
        inputs = model_input(latents, coeffs).float().repeat_interleave(rows_per_job, dim=0)
        predictions = self.denoiser(
            inputs, constants.plucker, timesteps.float().repeat_interleave(rows_per_job), constants.context
        )  # [R, V, C, h, w]
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
    plucker, context = (torch.cat([getattr(job, name) for job in jobs]) for name in ("plucker", "context"))
    return _BatchConstants(tuple(jobs), plucker, context, rows.cumsum(0) - 1, guided, guidance)
