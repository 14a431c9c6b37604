"""The denoise loop on a CUDA device that exists only as shapes: no transfer and no wait inside a step."""

from collections.abc import Callable

import pytest
import torch
from diffsplat_client.request import GenerationRequest

from diffsplat.backends.cuda_sync import read_sync_debug
from diffsplat.backends.eager import TorchGraph
from diffsplat.denoisers.buckets import Buckets
from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.stages.denoise import DenoiseStage, denoise_graphs
from diffsplat.stages.denoise_job import DenoiseJob
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.image_features import ImageFeatures
from diffsplat.stages.work import DenoiseWork
from diffsplat.text.features import TextFeatures
from tests.fake_cuda import FakeCuda
from tests.families import family_spec

MAX_BATCH = 3
REQUESTS = (  # every scheduler, those that draw noise and those that do not, with and without guidance
    {"steps": 2, "guidance_scale": 1.0},
    {"steps": 3, "triangle_guidance": True, "scheduler": "sde-dpmsolver++"},
    {"steps": 2, "scheduler": "ddim", "eta": 1.0},
    {"steps": 2, "scheduler": "dpmsolver++"},
    {"steps": 2, "scheduler": "edm"},
    {"steps": 2, "scheduler": "flow"},
    {"steps": 4, "init_std": 0.1, "init_noise_strength": 0.6},
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def make(fake: FakeCuda) -> Callable[..., DenoiseStage]:
    def make(name: str, controls: tuple[str, ...] = ()) -> DenoiseStage:
        spec = family_spec(name, controls)
        return DenoiseStage(spec, fake.graphs(spec, denoise_graphs(spec)), Buckets(2 * MAX_BATCH, spec.text.tokens))

    return make


def work_of(stage: DenoiseStage, tokens: int = 3, **options) -> DenoiseWork:
    """A request with texts of two lengths, and whatever images its options ask for."""
    spec = stage.spec
    request = GenerationRequest("a red cube", **options).with_defaults(
        **{**spec.request_defaults, "elevation_deg": 10.0, "seed": 1}
    )
    length = spec.text.tokens
    mask = torch.arange(length) < torch.tensor([tokens, 1])[:, None]
    if spec.family != "pixart":
        mask = torch.ones_like(mask)
    text = TextFeatures(torch.randn(2, length, spec.text.width), mask, torch.randn(2, spec.text.pooled_width))
    latents = (spec.latent_channels, spec.latent_size, spec.latent_size)
    images = ImageFeatures(
        torch.randn(latents) if spec.is_image_conditioned else None,
        torch.rand(3, spec.hint_size, spec.hint_size) if request.control_type else None,
        torch.rand(2, spec.geometry.views, *latents) if request.has_blob_start else None,
    )
    work = DenoiseWork(Envelope(request), text, images)
    stage.check(work)
    return work


def finish(fake: FakeCuda, stage: DenoiseStage, jobs: list[DenoiseJob]) -> None:
    """Every step of jobs that join one after the other and leave as they end."""
    waiting, active = jobs[2:], jobs[:2]
    while active:
        with fake.step():
            stage.step(active)
        active = [job for job in active if job.step < job.steps]
        if waiting and len(active) < MAX_BATCH:
            active.append(waiting.pop())


@pytest.mark.parametrize("family", ["sdxl_image", "pixart_sigma", "sd35_image"])
def test_a_step_moves_nothing_and_waits_for_nothing(fake: FakeCuda, make, family: str) -> None:
    stage = make(family)
    jobs = []
    for number, options in enumerate(REQUESTS):
        if options.get("scheduler") in (None, *stage.spec.schedule.schedulers):
            jobs.append(stage.start(work_of(stage, tokens=number + 1, **options)))
    finish(fake, stage, jobs)
    assert {job.tables.noise is None for job in jobs} == {False, True}  # some drew noise, some did not
    assert all(job.step == job.steps and job.latents.device.type == "cuda" for job in jobs)
    assert max(len(shape) for _, shape in fake.transfers) == 5  # noise was counted, as was all of `start`
    assert {where for where, _ in fake.transfers} == {"cuda"}


def test_nor_does_a_step_with_control_maps(fake: FakeCuda, make) -> None:
    stage = make("sd15", ("depth", "canny"))
    options = [{}, {"control_type": "depth"}, {"control_type": "canny", "guess_mode": True}, {"control_type": "canny"}]
    image = b"is encoded already"
    jobs = [
        stage.start(work_of(stage, steps=1 + k // 2, **({**each, "control_image": image} if each else {})))
        for k, each in enumerate(options)
    ]
    finish(fake, stage, jobs)
    assert all(job.step == job.steps for job in jobs)


def test_the_result_is_looked_at_once_per_object(fake: FakeCuda, make) -> None:
    stage = make("sd15")
    job = stage.start(work_of(stage, steps=1))
    with fake.step():
        stage.step([job])
    before = len(fake.transfers)
    with pytest.raises(RuntimeError, match="step 1 of 1 gave latents that are not finite"):
        job.result()  # the count comes to the host as zero
    assert fake.transfers[before:] == [("cpu", ())]


def test_batches_come_in_buckets(fake: FakeCuda, make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 2 x `max_batch` rows; texts of few lengths where a family masks padding. The warm-up shows every size."""
    stage = make("pixart_sigma")
    stage.buckets = Buckets(2 * MAX_BATCH, 40)
    shapes: list[tuple[int, int]] = []
    run = type(stage.graphs[STEP]).__call__

    def seen(graph: TorchGraph, *inputs: torch.Tensor) -> torch.Tensor:
        if graph.name == STEP:
            shapes.append((len(inputs[3]), inputs[3].shape[1]))
        return run(graph, *inputs)

    monkeypatch.setattr(type(stage.graphs[STEP]), "__call__", seen)
    monkeypatch.setattr(stage, "step", lambda jobs, step=stage.step: in_step(fake, step, jobs))
    stage.warm_up(MAX_BATCH)
    assert shapes == [(rows, tokens) for tokens in (32, 40) for rows in (1, 2, 4, 6)]
    shapes.clear()
    stage.step([stage.start(work_of(stage, tokens, steps=1)) for tokens in (3, 20, 5)][:MAX_BATCH])
    assert shapes == [(6, 32)]


def in_step(fake: FakeCuda, step: Callable[[list[DenoiseJob]], None], jobs: list[DenoiseJob]) -> None:
    with fake.step():
        step(jobs)


def test_sizes_of_buckets() -> None:
    assert Buckets(8, 300).rows == (1, 2, 4, 8) and Buckets(8, 300).tokens == (32, 64, 128, 256, 300)
    assert Buckets(6, 16).rows == (1, 2, 4, 6) and Buckets(1, 16).tokens == (16,)
    assert [Buckets(6, 77).pad_rows(rows) for rows in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    with pytest.raises(ValueError, match="7 rows in a batch of the denoiser: at most 6"):
        Buckets(6, 77).pad_rows(7)


def test_the_watch_for_waits_is_a_parameter() -> None:
    assert [read_sync_debug({"sync_debug": mode}) for mode in ("default", "warn", "error")] == [
        "default", "warn", "error"
    ]  # fmt: skip
    assert read_sync_debug({}) == "default"
    with pytest.raises(ValueError, match="sync_debug = 'on': must be one of default, warn, error"):
        read_sync_debug({"sync_debug": "on"})
