"""The preview stage: it decodes the clean estimate, by the tiny decoder where there is one."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffsplat_client.request import GenerationRequest

from diffsplat.bundle import Bundle, open_bundle, write_bundle
from diffsplat.networks import DECODER, TINY_DECODER, network_builders, preview_decoder
from diffsplat.pipeline import Pipeline
from diffsplat.stages.denoise_job import DenoiseJob
from diffsplat.stages.preview import PreviewStage
from export.repository import export_repository

SMALL = {"num_blocks": [1, 1, 1], "block_out_channels": [8, 8, 8]}


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Bundle) -> Pipeline:
    return Pipeline.from_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def bundle_with_tiny_decoder(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle with one more network, whose weights are random."""
    spec = dataclasses.replace(tiny_bundle.spec, gsvae={**tiny_bundle.spec.gsvae, "tiny_decoder": SMALL})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {name: build() for name, build in network_builders(spec).items()}
    tokenizer = (tiny_bundle.root / "tokenizer.json").read_text()
    return write_bundle(tmp_path_factory.mktemp("bundles") / "with_tiny", spec, networks, [tokenizer], {"seed": 0})


def job_after(pipeline: Pipeline, step: int, **options: object) -> DenoiseJob:
    request = GenerationRequest("a red cube", seed=3, steps=6, scheduler="ddim", **options)
    job = pipeline.denoise.start(pipeline.encode.run(request))
    for _ in range(step):
        pipeline.denoise.step([job])
    return job


def test_it_shows_the_clean_estimate_and_changes_nothing(tiny_bundle: Bundle, pipeline: Pipeline) -> None:
    job = job_after(pipeline, 2)
    latents, estimate = job.latents.clone(), job.x0_previous.clone()
    shown = PreviewStage.from_bundle(tiny_bundle).run(job)
    decoded = pipeline.decode.run(estimate, job.envelope).splats
    assert np.array_equal(shown, decoded[decoded[:, 6] > 0].numpy())
    assert not torch.equal(latents, estimate) and torch.equal(job.latents, latents)
    assert torch.equal(job.x0_previous, estimate) and job.step == 2


def test_it_keeps_what_the_result_would_keep(tiny_bundle: Bundle, pipeline: Pipeline) -> None:
    stage = PreviewStage.from_bundle(tiny_bundle)
    all_of_them = stage.run(job_after(pipeline, 3))
    few = stage.run(job_after(pipeline, 3, num_gaussians=50))
    assert len(few) == 50 and set(map(bytes, few)) < set(map(bytes, all_of_them))
    middle = float(np.median(all_of_them[:, 6]))
    assert (stage.run(job_after(pipeline, 3, opacity_threshold_asset=middle))[:, 6] > middle).all()


def test_after_the_last_step_it_is_the_result(tiny_bundle: Bundle, pipeline: Pipeline) -> None:
    """Where the sampler ends at the estimate, as DPM-Solver++ does."""
    request = GenerationRequest("a red cube", seed=3, steps=6, scheduler="dpmsolver++")
    job = pipeline.denoise.start(pipeline.encode.run(request))
    while job.step < job.steps:
        pipeline.denoise.step([job])
    result = pipeline.generate(request).gaussians
    assert result is not None
    assert np.abs(PreviewStage.from_bundle(tiny_bundle).run(job) - result).max() < 1e-4


def test_a_tiny_decoder_is_taken_where_there_is_one(
    tiny_bundle: Bundle, bundle_with_tiny_decoder: Bundle, tmp_path: Path
) -> None:
    assert preview_decoder(tiny_bundle.spec) == DECODER
    bundle = open_bundle(bundle_with_tiny_decoder.root)
    assert preview_decoder(bundle.spec) == TINY_DECODER
    export = export_repository(bundle.root, tmp_path / "repository", "torch")
    assert {DECODER, TINY_DECODER} <= set(export.graphs)
    stage = PreviewStage.load(export.folder / "decode" / "1", threads=1)
    job = job_after(Pipeline.load(export.folder, threads=1), 2)
    shown = stage.run(job)
    assert stage.decode.decoder.name == TINY_DECODER
    assert np.allclose(shown, PreviewStage.from_bundle(bundle).run(job), atol=1e-5)
    by_the_large_one = Pipeline.from_bundle(bundle).decode.run(job.x0_previous, job.envelope).splats.numpy()
    assert not np.allclose(shown, by_the_large_one[: len(shown)], atol=1e-3)


def test_warming_up_says_what_a_preview_takes(tiny_bundle: Bundle) -> None:
    assert PreviewStage.from_bundle(tiny_bundle).warm_up() > 0
