"""`denoise`: text embeddings -> latents of the four views, one step at a time for any number of requests.

Axes: J jobs (requests), R rows of the network's batch (one per job, two where guidance needs the unconditional half),
V views, C latent channels, h w latent pixels.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle
from diffsplat.denoisers.control_inputs import ControlInputs, add_residuals, control_graphs, prepare_control
from diffsplat.denoisers.graph_inputs import (
    STEP,
    RequestInputs,
    batch_key,
    join_rows,
    prepare,
    request_graphs,
    step_input_names,
)
from diffsplat.export_record import ExportRecord
from diffsplat.geometry.cameras import generated_view_cameras, latent_plucker
from diffsplat.graph import Graph
from diffsplat.runtime import bundle_graphs, load_graphs
from diffsplat.sampling.blob_start import LateStart, late_start
from diffsplat.sampling.guidance import guidance_scales, guide, needs_guidance
from diffsplat.sampling.noise import NoiseSource, SeededNoise
from diffsplat.sampling.schedulers import build_sampler
from diffsplat.sampling.steps import SamplerTable, model_input, needs_noise, sampler_step
from diffsplat.stages.checks import check_range, check_shape
from diffsplat.stages.encode import check_request
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.image_features import ImageFeatures
from diffsplat.stages.work import DenoiseWork
from diffsplat.text.features import TextFeatures


@dataclass(eq=False)
class DenoiseJob:
    """One request between two steps. What does not change with the step is computed when it starts."""

    envelope: Envelope
    sampler: SamplerTable
    guidance: Tensor  # [V]
    guided: bool  # two rows (unconditional, conditional) instead of the conditional one
    plucker: Tensor  # [rows, V, 6, h, w]
    inputs: RequestInputs  # of text, time and condition image
    control: ControlInputs | None
    noise_source: NoiseSource
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
        """Noise of the coming step, drawn once. Deterministic steps return zeros without drawing any."""
        if self.noise is None:
            if needs_noise(self.sampler.coeffs[self.step]):
                self.noise = self.noise_source.draw(self.latents.shape)
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
        """`graphs`: those of `denoise_graphs`, by name."""
        self.spec = spec
        self.graphs = graphs
        self._step_inputs = step_input_names(spec)
        self._constants: dict[int, _BatchConstants] = {}  # by `batch_key`

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], threads: int | None = None, device: str | None = None
    ) -> "DenoiseStage":
        """From a version folder: see `runtime.load_graphs`."""
        spec = ExportRecord.read(folder).spec
        return cls(spec, load_graphs(folder, denoise_graphs(spec), threads, device))

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "DenoiseStage":
        """Straight from a bundle, run by torch."""
        return cls(bundle.spec, bundle_graphs(bundle, denoise_graphs(bundle.spec)))

    def warm_up(self, requests: int) -> None:
        """One step of some requests that use every graph."""
        spec = self.spec
        latents, tokens = (spec.latent_channels, spec.latent_size, spec.latent_size), spec.text.tokens
        text = TextFeatures(
            torch.zeros(2, tokens, spec.text.width),
            torch.ones(2, tokens, dtype=torch.bool),
            torch.zeros(2, spec.text.pooled_width),
        )
        defaults = {**spec.request_defaults, "elevation_deg": 0.0, "steps": 1, "seed": 0}
        request = GenerationRequest("warm up").with_defaults(**defaults)
        images = ImageFeatures(torch.zeros(latents) if spec.is_image_conditioned else None)
        works = [DenoiseWork(Envelope(request), text, images)]
        for kind in spec.controls:
            controlled = dataclasses.replace(request, control_type=kind)
            hint = torch.zeros(3, spec.hint_size, spec.hint_size)
            works.append(DenoiseWork(Envelope(controlled), text, ImageFeatures(hint=hint)))
        for work in works:
            self.step([self.start(work) for _ in range(requests)])

    def check(self, work: DenoiseWork) -> None:
        """Refuse bad input before it is queued. InvalidRequestError names tensor, value and what is allowed."""
        check_request(work.envelope.request, self.spec)
        text, (embeddings, mask, pooled) = self.spec.text, work.text
        check_shape("TEXT_EMBEDDINGS", embeddings, (2, (1, text.tokens), text.width))
        check_range("TEXT_EMBEDDINGS", embeddings)
        check_shape("TEXT_MASK", mask, (2, embeddings.shape[1]))
        if not bool(mask.any(dim=1).all()):
            raise InvalidRequestError("TEXT_MASK: every row must keep at least one token")
        check_shape("POOLED_TEXT", pooled, (2, text.pooled_width))
        check_range("POOLED_TEXT", pooled)
        self._check_images(work)

    def _check_images(self, work: DenoiseWork) -> None:
        spec, request = self.spec, work.envelope.request
        latents = (spec.latent_channels, spec.latent_size, spec.latent_size)
        wanted = {
            "CONDITION_LATENTS": (work.images.condition_latents, spec.is_image_conditioned, latents),
            "HINT": (work.images.hint, request.control_type is not None, (3, spec.hint_size, spec.hint_size)),
            "START_MOMENTS": (work.images.start_moments, request.has_blob_start, (2, spec.geometry.views, *latents)),
        }
        for name, (values, is_wanted, shape) in wanted.items():
            if (values is not None) != is_wanted:
                raise InvalidRequestError(f"{name} is {'missing' if is_wanted else 'given, but nothing asks for it'}")
            if values is not None:
                check_shape(name, values, shape)
                check_range(name, values)

    def start(self, work: DenoiseWork, noise: NoiseSource | None = None) -> DenoiseJob:
        """Compute what a request needs once, and draw its first noise.

        Args:
            work: a request that `check` accepts.
            noise: all its noise; by default that of the request's seed.
        """
        request, geometry = work.envelope.request, self.spec.geometry
        assert request.scheduler and request.steps and request.seed is not None and request.eta is not None
        assert request.guidance_scale is not None and request.elevation_deg is not None and request.distance is not None
        sampler, begin = self._sampler(request)
        guidance = guidance_scales(
            request.guidance_scale, geometry.views, request.triangle_guidance, request.min_guidance_scale
        )
        guided = needs_guidance(guidance)
        rows = [1, 0] if guided else [0]  # (negative, prompt) or (prompt,)
        text = TextFeatures(*(values[rows] for values in work.text))
        cameras = generated_view_cameras(request.elevation_deg, request.distance, geometry.views)
        plucker = latent_plucker(cameras, geometry, self.spec.latent_size)
        noise = noise or SeededNoise(request.seed)
        shape = (geometry.views, self.spec.latent_channels, self.spec.latent_size, self.spec.latent_size)
        latents = noise.draw(shape) * sampler.init_sigma
        if begin is not None:  # discards the first draw, as the published code does
            assert work.images.start_moments is not None
            mean, std = work.images.start_moments
            clean = mean + std * noise.draw(shape)
            latents = begin.noised(clean, noise.draw(shape))
        control = None
        if work.images.hint is not None:
            assert request.control_type is not None
            control = prepare_control(
                self.spec, self.graphs, request.control_type, text, work.images.hint, request.control_scale,
                request.guess_mode,
            )  # fmt: skip
        return DenoiseJob(
            envelope=work.envelope,
            sampler=sampler,
            guidance=guidance,
            guided=guided,
            plucker=plucker.expand(len(rows), *plucker.shape),
            inputs=prepare(self.spec, self.graphs, text, sampler.timesteps, work.images.condition_latents),
            control=control,
            noise_source=noise,
            latents=latents,
            x0_previous=torch.zeros_like(latents),
        )

    def _sampler(self, request: GenerationRequest) -> tuple[SamplerTable, LateStart | None]:
        """The schedule; with Instant3D's start only its last steps."""
        assert request.scheduler and request.steps and request.eta is not None
        options = (self.spec.schedule, request.scheduler, request.steps, request.eta)
        if not request.has_blob_start:
            return build_sampler(*options), None
        begin = late_start(*options, request.init_noise_strength)
        return begin.table, begin

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
        if self.spec.controls:
            controls, counts = [job.control for job in jobs], [job.rows for job in jobs]
            inputs["residuals"] = add_residuals(self.spec, self.graphs, controls, counts, inputs)
        predictions = self.graphs[STEP](*(inputs[name] for name in self._step_inputs))  # [R, V, C, h, w]
        prediction = predictions[constants.cond_rows]  # [J, V, C, h, w]
        if len(constants.guided_jobs):
            cond = constants.cond_rows[constants.guided_jobs]
            prediction[constants.guided_jobs] = guide(predictions[cond - 1], predictions[cond], constants.guidance)
        noise = torch.stack([job.next_noise() for job in jobs]) if needs_noise(coeffs) else None
        return sampler_step(latents, prediction, torch.stack([job.x0_previous for job in jobs]), noise, coeffs)


def denoise_graphs(spec: BackboneSpec) -> tuple[str, ...]:
    """Graphs of this stage."""
    controls = (name for kind in spec.controls for name in control_graphs(spec, kind))
    return (*request_graphs(spec), *controls, STEP)


def _batch_constants(jobs: list[DenoiseJob]) -> _BatchConstants:
    rows = torch.tensor([job.rows for job in jobs])
    guided = torch.tensor([i for i, job in enumerate(jobs) if job.guided], dtype=torch.int64)
    guidance = torch.stack([job.guidance for job in jobs])[guided]
    inputs = {"plucker": torch.cat([job.plucker for job in jobs]), **join_rows([job.inputs for job in jobs])}
    return _BatchConstants(tuple(jobs), inputs, rows.cumsum(0) - 1, guided, guidance)
