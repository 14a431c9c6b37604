"""`denoise`: text embeddings -> latents of the four views, one step at a time for any number of requests.

`start` computes what a request needs once and moves it to the denoiser's device; `step` neither moves a tensor nor
waits for the device, so that the next step is queued while the last one runs.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import torch
from diffsplat_client.request import GenerationRequest

from diffsplat.backbones import BackboneSpec
from diffsplat.backends import BACKENDS
from diffsplat.backends.cuda_graphs import replayed
from diffsplat.backends.cuda_sync import Pace, SyncDebug, watch_for_waiting
from diffsplat.backends.transfer import to_device
from diffsplat.bundle import Bundle
from diffsplat.denoisers.buckets import Buckets
from diffsplat.denoisers.control_inputs import control_graphs, prepare_control
from diffsplat.denoisers.graph_inputs import STEP, batch_key, masks_padding, prepare, request_graphs
from diffsplat.export_record import ExportRecord
from diffsplat.geometry.cameras import generated_view_cameras, latent_plucker
from diffsplat.graph import Graph, Precision
from diffsplat.runtime import bundle_graphs, load_graphs
from diffsplat.sampling.blob_start import LateStart, kept_steps, late_start
from diffsplat.sampling.guidance import guidance_scales, needs_guidance
from diffsplat.sampling.noise import NoiseSource, SeededNoise
from diffsplat.sampling.schedulers import build_sampler
from diffsplat.sampling.steps import SamplerTable
from diffsplat.stages.denoise_batch import StepBatch
from diffsplat.stages.denoise_checks import check_work
from diffsplat.stages.denoise_job import DenoiseJob, StepTables
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.image_features import ImageFeatures
from diffsplat.stages.work import DenoiseWork
from diffsplat.stages.work_size import WorkSize
from diffsplat.text.features import TextFeatures


class DenoiseStage:
    """Starts jobs and steps them together; the `StepModel` of the engine."""

    def __init__(
        self,
        spec: BackboneSpec,
        graphs: Mapping[str, Graph],
        buckets: Buckets | None = None,
        sync_debug: SyncDebug = "default",
    ) -> None:
        """Of graphs that lie on one device.

        Args:
            spec: of the backbone.
            graphs: those of `denoise_graphs`, by name.
            buckets: to which batches are padded; None: a batch has the size of its requests.
            sync_debug: what torch does where the host waits for a CUDA device inside a step.
        """
        self.spec = spec
        self.graphs = graphs
        self.device = graphs[STEP].device
        self.buckets = buckets
        self.sync_debug = sync_debug
        self._pace = Pace(self.device)
        self._batches: dict[int, StepBatch] = {}  # by `batch_key`

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        threads: int | None = None,
        device: str | None = None,
        max_batch: int = 1,
        sync_debug: SyncDebug = "default",
    ) -> "DenoiseStage":
        """From a version folder.

        Args:
            folder: holds the graphs.
            threads: as in `runtime.load_graphs`, which says what is raised.
            device: likewise.
            max_batch: requests that may make a step together; on CUDA their batches are padded to buckets.
            sync_debug: as in the constructor.
        """
        spec = ExportRecord.read(folder).spec
        graphs = replayed(load_graphs(folder, denoise_graphs(spec), threads, device), step_graphs(spec))
        on_cuda = graphs[STEP].device.type == "cuda"
        return cls(spec, graphs, Buckets(2 * max_batch, spec.text.tokens) if on_cuda else None, sync_debug)

    @classmethod
    def from_bundle(cls, bundle: Bundle, precision: Precision = "fp32") -> "DenoiseStage":
        """Straight from a bundle, run by torch."""
        return cls(bundle.spec, bundle_graphs(bundle, denoise_graphs(bundle.spec), precision))

    @property
    def compiles_batches(self) -> bool:
        """Whether the first step of a batch of another size takes seconds."""
        return BACKENDS[self.graphs[STEP].backend].compiles_shapes

    def warm_up(self, requests: int) -> None:
        """One step of some requests that use every graph; with buckets one step of every size that they allow."""
        if self.buckets is None:
            self._warm_up(requests, guided=True, tokens=self.spec.text.tokens)
            return
        for tokens in self.buckets.tokens if masks_padding(self.spec) else (self.spec.text.tokens,):
            for rows in self.buckets.rows:
                self._warm_up(max(rows // 2, 1), guided=rows > 1, tokens=tokens)

    def _warm_up(self, requests: int, guided: bool, tokens: int) -> None:
        """One step of requests with a text of `tokens` tokens, without a control map and with each."""
        spec = self.spec
        latents = (spec.latent_channels, spec.latent_size, spec.latent_size)
        text = TextFeatures(
            torch.zeros(2, tokens, spec.text.width),
            torch.ones(2, tokens, dtype=torch.bool),
            torch.zeros(2, spec.text.pooled_width),
        )
        defaults = {**spec.request_defaults, "elevation_deg": 0.0, "steps": 1, "seed": 0}
        request = GenerationRequest("warm up", guidance_scale=2.0 if guided else 1.0).with_defaults(**defaults)
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
        check_work(work, self.spec)

    def size(self, work: DenoiseWork) -> WorkSize:
        """Steps of a request that `check` accepts, and its rows in a batch."""
        request = work.envelope.request
        assert request.steps is not None
        steps = kept_steps(request.steps, request.init_noise_strength) if request.has_blob_start else request.steps
        return WorkSize(steps, 2 if needs_guidance(self._guidance(request)) else 1)

    def start(self, work: DenoiseWork, noise: NoiseSource | None = None) -> DenoiseJob:
        """Compute what a request needs once, draw all its noise, and move both to the device.

        Args:
            work: a request that `check` accepts, on the host.
            noise: all its noise; by default that of the request's seed.
        """
        request, geometry = work.envelope.request, self.spec.geometry
        assert request.scheduler and request.steps and request.seed is not None and request.eta is not None
        assert request.elevation_deg is not None and request.distance is not None
        sampler, begin = self._sampler(request)
        guidance = self._guidance(request)
        guided = needs_guidance(guidance)
        rows = [1, 0] if guided else [0]  # (negative, prompt) or (prompt,)
        text = TextFeatures(*(values[rows] for values in work.text))
        cameras = generated_view_cameras(request.elevation_deg, request.distance, geometry.views)
        plucker = to_device(latent_plucker(cameras, geometry, self.spec.latent_size), self.device)
        noise = noise or SeededNoise(request.seed)
        shape = (geometry.views, self.spec.latent_channels, self.spec.latent_size, self.spec.latent_size)
        first = noise.draw(shape) * sampler.init_sigma
        if begin is not None:  # discards the first draw, as the published code does
            assert work.images.start_moments is not None
            mean, std = work.images.start_moments
            clean = mean + std * noise.draw(shape)
            first = begin.noised(clean, noise.draw(shape))
        tables = StepTables.draw(sampler, noise, first.shape, self.device)
        control = None
        if work.images.hint is not None:
            assert request.control_type is not None
            control = prepare_control(
                self.spec, self.graphs, request.control_type, text, work.images.hint, request.control_scale,
                request.guess_mode,
            )  # fmt: skip
        latents, network = to_device(first, self.device), self.graphs[STEP]
        return DenoiseJob(
            envelope=work.envelope,
            sampler=sampler,
            tables=tables,
            guidance=to_device(guidance, self.device),
            guided=guided,
            plucker=plucker.expand(len(rows), *plucker.shape),
            inputs=prepare(self.spec, self.graphs, text, sampler.timesteps, work.images.condition_latents),
            control=control,
            network=f"graph {network.name}, {network.backend} in {network.precision}",
            latents=latents,
            x0_previous=torch.zeros_like(latents),
            finite_steps=latents.new_zeros((), dtype=torch.int64),
        )

    def _guidance(self, request: GenerationRequest) -> torch.Tensor:
        """Of every view, [V]."""
        assert request.guidance_scale is not None
        return guidance_scales(
            request.guidance_scale, self.spec.geometry.views, request.triangle_guidance, request.min_guidance_scale
        )

    def _sampler(self, request: GenerationRequest) -> tuple[SamplerTable, LateStart | None]:
        """The schedule; with Instant3D's start only its last steps."""
        assert request.scheduler and request.steps and request.eta is not None
        options = (self.spec.schedule, request.scheduler, request.steps, request.eta)
        if not request.has_blob_start:
            return build_sampler(*options), None
        begin = late_start(*options, request.init_noise_strength)
        return begin.table, begin

    @torch.no_grad()
    def step(self, states: Sequence[DenoiseJob]) -> None:
        """One step of every job. Jobs whose texts fit together run as one batch."""
        self._pace.wait()
        with watch_for_waiting(self.sync_debug, self.device):
            groups: dict[int, list[DenoiseJob]] = {}
            for job in states:
                groups.setdefault(batch_key(job.inputs), []).append(job)
            results = [(jobs, *self._batch(key, jobs).step(self.graphs)) for key, jobs in groups.items()]
        for jobs, (latents, x0), finite in results:  # nothing was changed so far: a failed step can be repeated
            for i, job in enumerate(jobs):
                job.latents, job.x0_previous, job.finite_steps = latents[i], x0[i], finite[i]
                job.step += 1
        self._pace.mark()

    def _batch(self, key: int, jobs: list[DenoiseJob]) -> StepBatch:
        """That of the step before, if the same jobs make this one."""
        batch = self._batches.get(key)
        if batch is None or batch.jobs != tuple(jobs):
            batch = self._batches[key] = StepBatch(self.spec, jobs, self.buckets)
        return batch


def denoise_graphs(spec: BackboneSpec) -> tuple[str, ...]:
    """Graphs of this stage."""
    controls = (name for kind in spec.controls for name in control_graphs(spec, kind))
    return (*request_graphs(spec), *controls, STEP)


def step_graphs(spec: BackboneSpec) -> tuple[str, ...]:
    """Graphs of this stage that run at every step."""
    return (*(control_graphs(spec, kind)[-1] for kind in spec.controls), STEP)
