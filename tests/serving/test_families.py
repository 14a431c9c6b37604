"""Every family through the stages: prompts to splats, batched like alone, exported like torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffsplat_client.request import GenerationRequest

from diffsplat.backends.eager import TorchGraph
from diffsplat.bundle import Bundle
from diffsplat.denoisers.buckets import Buckets
from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.pipeline import Pipeline
from diffsplat.stages.denoise import DenoiseStage
from diffsplat.stages.denoise_job import DenoiseJob
from export.repository import export_repository
from tests.families import write_family_bundle

FAMILIES = ["sd15", "sd21", "sdxl", "pixart_alpha", "pixart_sigma", "sd3", "sd35"]
SHORT = GenerationRequest("a red cube", seed=1)
LONG = GenerationRequest("two blue spheres on a large green cone", seed=2, steps=5, negative_prompt="small")
PLAIN = GenerationRequest("a large cone", seed=3, guidance_scale=1.0)


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_family_bundle(tmp_path_factory.mktemp("families") / request.param, request.param)


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Pipeline:
    return Pipeline.from_bundle(bundle)


def started(pipeline: Pipeline, request: GenerationRequest) -> DenoiseJob:
    work = pipeline.encode.run(request)
    pipeline.denoise.check(work)
    return pipeline.denoise.start(work)


def finished(pipeline: Pipeline, request: GenerationRequest) -> torch.Tensor:
    job = started(pipeline, request)
    while job.step < job.steps:
        pipeline.denoise.step([job])
    return job.latents


def test_requests_do_not_depend_on_their_neighbours(pipeline: Pipeline) -> None:
    """Prompts and schedules of different lengths, one without guidance, joining at different steps."""
    alone = [finished(pipeline, request) for request in (SHORT, LONG, PLAIN)]
    jobs = [started(pipeline, request) for request in (SHORT, LONG, PLAIN)]
    pipeline.denoise.step(jobs[1:2])
    while active := [job for job in jobs if job.step < job.steps]:
        pipeline.denoise.step(active)
    for job, expected in zip(jobs, alone, strict=True):
        assert (job.latents - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_padding_to_buckets_changes_no_request(pipeline: Pipeline) -> None:
    """Sizes that are only used on CUDA, forced on the CPU; five rows become eight, whatever the padding holds."""
    denoise = pipeline.denoise
    padded = DenoiseStage(denoise.spec, denoise.graphs, Buckets(8, denoise.spec.text.tokens))
    requests = (SHORT, LONG, PLAIN)
    expected = [started(pipeline, request) for request in requests]
    jobs = [started(pipeline, request) for request in requests]
    for _ in range(2):
        denoise.step(expected)
        padded.step(jobs)
    for job, plain in zip(jobs, expected, strict=True):
        assert (job.latents - plain.latents).abs().max() <= 1e-5 * plain.latents.abs().max()  # of another batch size
    others = [started(pipeline, request) for request in (SHORT, LONG, SHORT, SHORT)]  # real rows instead of the padding
    for _ in range(2):
        padded.step(others)
    for job, other in zip(jobs[:2], others, strict=False):
        assert torch.equal(job.latents, other.latents)


def test_prompts_of_different_lengths_make_one_batch(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    step = pipeline.denoise.graphs[STEP]
    counted = {**pipeline.denoise.graphs, STEP: lambda *inputs: rows.append(len(inputs[0])) or step(*inputs)}
    jobs = [started(pipeline, request) for request in (SHORT, LONG, PLAIN)]
    monkeypatch.setattr(pipeline.denoise, "graphs", counted)
    pipeline.denoise.step(jobs)
    assert rows == [5]  # guided rows count twice


def test_what_a_request_computes_once_is_computed_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, int] = {}

    class Counted(TorchGraph):
        def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
            calls[self.name] = calls.get(self.name, 0) + 1
            return super().__call__(*inputs)

    graphs = {name: Counted(name, graph.module) for name, graph in pipeline.denoise.graphs.items()}
    monkeypatch.setattr(pipeline.denoise, "graphs", graphs)
    finished(pipeline, LONG)
    assert calls.pop(STEP) == 5
    assert calls and set(calls.values()) == {1}


def test_the_prompt_the_negative_prompt_and_the_seed_matter(pipeline: Pipeline) -> None:
    base = finished(pipeline, SHORT)
    for changed in (
        GenerationRequest("a blue cone", seed=1),
        GenerationRequest("a red cube", seed=2),
        GenerationRequest("a red cube", seed=1, negative_prompt="green spheres"),
    ):
        assert not torch.allclose(finished(pipeline, changed), base)


def test_the_exported_stages_equal_the_bundle(bundle: Bundle, pipeline: Pipeline, tmp_path: Path) -> None:
    """By the back end that `test_families_served.py` does not serve this family's text model with."""
    backend = "onnxruntime" if bundle.spec.name == "tiny_pixart_alpha" else "torch"
    exported = Pipeline.load(export_repository(bundle.root, tmp_path / "repository", backend).folder, threads=1)
    assert {graph.backend for graph in exported.denoise.graphs.values()} == {backend}
    expected, actual = (side.generate(LONG).splats for side in (pipeline, exported))
    assert expected.shape == (4 * 32 * 32, 14)
    # position and colour; a canonical quaternion may flip where two scales are nearly the same
    assert np.abs(actual[:, :6] - expected[:, :6]).max() <= 1e-3 * np.abs(expected[:, :6]).max()
