"""The stages and the pipeline, in this process: defaults, warnings, noise, batching, checks."""

import dataclasses
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffsplat_client.contract import GAUSSIAN_COLUMNS
from diffsplat_client.errors import InvalidRequestError, RequestTimeoutError
from diffsplat_client.formats.ply import decode_ply
from diffsplat_client.request import GenerationRequest

from diffsplat.bundle import Bundle
from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.integrity import BundleError
from diffsplat.pipeline import Pipeline
from diffsplat.stages.decode import DecodeStage
from diffsplat.stages.denoise import DenoiseStage
from diffsplat.stages.denoise_job import DenoiseJob
from diffsplat.stages.encode import EncodeStage
from diffsplat.stages.envelope import Deadlines, Envelope
from diffsplat.stages.errors import NotFiniteError
from diffsplat.stages.work import DenoiseWork
from diffsplat.text.features import TextFeatures


def run_job(pipeline: Pipeline, request: GenerationRequest) -> DenoiseJob:
    job = pipeline.denoise.start(pipeline.encode.run(request))
    while job.step < job.steps:
        pipeline.denoise.step([job])
    return job


def test_encode_fills_every_open_field_and_draws_a_seed(pipeline: Pipeline) -> None:
    envelope, text, _ = pipeline.encode.run(GenerationRequest("a red cube"))
    spec = pipeline.encode.spec
    for name, value in spec.request_defaults.items():
        assert getattr(envelope.request, name) == value
    assert text.embeddings.shape == (2, spec.text.tokens, spec.text.width)
    assert text.mask.all() and text.pooled.shape == (2, 0)
    assert envelope.timings_ms["encode"] > 0 and envelope.warnings == ()
    assert len({pipeline.encode.resolve(GenerationRequest("x")).seed for _ in range(8)}) == 8
    assert pipeline.encode.resolve(GenerationRequest("x", seed=5, steps=3)).seed == 5


def test_encode_warns_of_what_the_text_encoder_does_not_see(pipeline: Pipeline) -> None:
    warnings = pipeline.encode.run(GenerationRequest("a red dragon", negative_prompt="red " * 30)).envelope.warnings
    assert warnings == (
        "prompt: the text encoder does not know 'dragon'",
        f"negative_prompt: the text encoder reads 16 tokens, cut off: '{'red ' * 15}red'",
    )


@pytest.mark.parametrize("prompt", ["🐉", "!!!", "\u200b", "\0"])
def test_encode_refuses_a_prompt_without_a_word(pipeline: Pipeline, prompt: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"prompt = {re.escape(repr(prompt))}: must contain a word"):
        pipeline.encode.run(GenerationRequest(prompt))
    negative = pipeline.encode.run(GenerationRequest("a red cube", negative_prompt=prompt)).envelope.warnings
    assert negative[0] == "negative_prompt: the text encoder reads nothing of it"


def test_a_scheduler_of_another_process_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequestError, match="scheduler = 'flow': must be one of ddim, dpmsolver"):
        pipeline.encode.run(GenerationRequest("x", scheduler="flow"))


def test_the_envelope_survives_its_json(pipeline: Pipeline, four_views: np.ndarray) -> None:
    envelope = pipeline.encode.run(GenerationRequest("a dragon", frame_poses=four_views)).envelope
    again = Envelope.from_json(envelope.to_json())
    assert again.warnings == envelope.warnings and again.timings_ms == envelope.timings_ms
    assert again.deadlines == Deadlines() and again.sent_s is not None and again.queued_ms() >= 0
    assert again.request.to_dict() == envelope.request.to_dict()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda v: "{", "REQUEST must be JSON"),
        (lambda v: "[" * 5000, "REQUEST must be JSON"),
        (lambda v: json.dumps({**v, "request": {**v["request"], "steps": None}}), "leaves steps open"),
        (lambda v: json.dumps({**v, "request": {**v["request"], "steps": 0}}), r"steps = 0: must be in 1 \.\. 200"),
        (lambda v: json.dumps({**v, "deadlines": [1, 2, 3]}), "REQUEST must be JSON"),
        (lambda v: json.dumps({**v, "deadlines": ["soon", None]}), "REQUEST must be JSON"),
        (lambda v: json.dumps({**v, "sent_s": float("nan")}), "REQUEST must be JSON"),
        (lambda v: json.dumps({**v, "ticket": "somebody else"}), "REQUEST must be JSON"),
        (lambda v: json.dumps({**v, "ticket": 7}), "REQUEST must be JSON"),
        (lambda v: json.dumps({**v, "request": {**v["request"], "colour": 1}}), "not the JSON form"),
    ],
)
def test_a_bad_envelope_is_refused(pipeline: Pipeline, spoil, says: str) -> None:
    values = json.loads(pipeline.encode.run(GenerationRequest("x")).envelope.to_json())
    with pytest.raises(InvalidRequestError, match=says):
        Envelope.from_json(spoil(values))


def test_deadlines_count_from_the_arrival(pipeline: Pipeline) -> None:
    before_s = time.monotonic()
    envelope = pipeline.encode.run(GenerationRequest("a cube", deadline_s=1e3, start_deadline_s=1e2)).envelope
    start_by_s, end_by_s = Envelope.from_json(envelope.to_json()).deadlines
    assert before_s + 1e2 <= start_by_s <= time.monotonic() + 1e2
    assert end_by_s == pytest.approx(start_by_s + 900, abs=1e-3)
    envelope.deadlines.check(end_by_s - 1, "decode")
    with pytest.raises(RequestTimeoutError, match=r"deadline_s passed 2\.000 s before decode could start"):
        envelope.deadlines.check(end_by_s + 2, "decode")


def test_noise_comes_from_the_requests_own_generator_in_the_references_order(pipeline: Pipeline) -> None:
    """First the latents, then one draw of the same shape per stochastic step."""
    request = GenerationRequest("a red cube", seed=11, steps=3, scheduler="sde-dpmsolver++")
    job = pipeline.denoise.start(pipeline.encode.run(request))
    generator = torch.Generator().manual_seed(11)
    first = torch.randn(job.latents.shape, generator=generator)
    assert torch.equal(job.latents, first * job.sampler.init_sigma)
    for _ in range(2):
        assert job.noise is not None and torch.equal(job.noise, torch.randn(job.latents.shape, generator=generator))
        pipeline.denoise.step([job])
    assert job.noise is None and job.tables.noise is not None and len(job.tables.noise) == 2  # none for the last step


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "sde-dpmsolver++", "edm"])
def test_a_request_does_not_depend_on_its_neighbours(pipeline: Pipeline, scheduler: str) -> None:
    """Requests with other schedules, guidance and prompts join and leave; the result stays that of a run alone."""
    request = GenerationRequest("a red cube", seed=3, steps=5, scheduler=scheduler)
    others = [
        GenerationRequest("a green sphere", seed=4, steps=7, scheduler="ddim", eta=1.0, guidance_scale=1.0),
        GenerationRequest("a blue cone", seed=5, steps=2, scheduler="edm", guidance_scale=9.0, triangle_guidance=True),
    ]
    alone = run_job(pipeline, request).latents
    jobs = [pipeline.denoise.start(pipeline.encode.run(r)) for r in (others[0], request, others[1])]
    pipeline.denoise.step(jobs[:1])  # one is ahead
    while active := [job for job in jobs if job.step < job.steps]:
        pipeline.denoise.step(active)
    scale = alone.abs().max().item()
    assert (jobs[1].latents - alone).abs().max().item() <= 1e-4 * scale
    assert (jobs[2].latents - run_job(pipeline, others[1]).latents).abs().max().item() <= 1e-4 * scale


def test_guidance_of_one_costs_no_unconditional_row(pipeline: Pipeline) -> None:
    encoded = [pipeline.encode.run(GenerationRequest("x", guidance_scale=g)) for g in (1.0, 3.0)]
    assert [pipeline.denoise.start(e).rows for e in encoded] == [1, 2]


def test_a_failed_step_changes_nothing(pipeline: Pipeline) -> None:
    """So the engine can try the requests of a failed batch one by one."""
    stage = DenoiseStage(pipeline.denoise.spec, pipeline.denoise.graphs)
    request = GenerationRequest("a red cube", seed=3, steps=2, scheduler="sde-dpmsolver++")
    job = stage.start(pipeline.encode.run(request))
    denoiser = stage.graphs[STEP]

    def broken(*inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    stage.graphs = {**stage.graphs, STEP: broken}  # type: ignore[dict-item]
    with pytest.raises(RuntimeError, match="out of memory"):
        stage.step([job])
    stage.graphs = {**stage.graphs, STEP: denoiser}
    while job.step < job.steps:
        stage.step([job])
    assert torch.equal(job.result(), run_job(pipeline, request).result())


def test_latents_that_are_not_finite_fail_their_request_alone(pipeline: Pipeline) -> None:
    """As a network in bf16 may: the error names the first such step, what ran it, and its precision."""
    requests = [GenerationRequest("a red cube", seed=seed, steps=3) for seed in (1, 2)]
    bad, good = (pipeline.denoise.start(pipeline.encode.run(request)) for request in requests)
    pipeline.denoise.step([bad, good])
    bad.x0_previous = torch.full_like(bad.x0_previous, torch.inf)  # inf - inf in the step's update
    while good.step < good.steps:
        pipeline.denoise.step([bad, good])
    graph = pipeline.denoise.graphs[STEP]
    says = rf"step 2 of 3 gave latents that are not finite \(graph denoiser, {graph.backend} in {graph.precision}\)"
    with pytest.raises(NotFiniteError, match=says):
        bad.result()
    assert torch.equal(good.result(), run_job(pipeline, requests[1]).result())


def test_the_pipeline_gives_the_same_object_for_a_seed(pipeline: Pipeline, four_views: np.ndarray) -> None:
    steps = []
    request = GenerationRequest("a red cube", seed=7, frame_poses=four_views, frame_size=32)
    first = pipeline.generate(request, lambda step, of: steps.append((step, of)))
    again = pipeline.generate(dataclasses.replace(request, formats=("ply",)))
    assert steps == [(k, 16) for k in range(1, 17)]
    assert first.seed == 7 and first.frames is not None and first.frames.shape == (4, 32, 32, 3)
    assert np.array_equal(first.splats, again.splats) and np.array_equal(first.frames, again.frames)
    assert set(first.timings_ms) == {"encode", "denoise", "decode", "rasterize", "package"}
    assert first.gaussians is not None and not first.assets and again.gaussians is None
    cloud = decode_ply(again.assets["ply"])
    np.testing.assert_array_equal(cloud.positions, first.gaussians[:, GAUSSIAN_COLUMNS["xyz"]])
    other = pipeline.generate(dataclasses.replace(request, seed=8))
    assert not np.allclose(other.splats, first.splats)


def test_thresholds_apply_to_frames_and_files_apart(pipeline: Pipeline, four_views: np.ndarray) -> None:
    request = GenerationRequest("a red cube", seed=7, frame_poses=four_views, frame_size=32)
    plain = pipeline.generate(request)
    opacity = plain.splats[:, 6]
    middle = float(np.median(opacity))
    cut = pipeline.generate(dataclasses.replace(request, opacity_threshold_asset=middle))
    assert cut.gaussians is not None and len(cut.gaussians) == int((opacity > np.float32(middle)).sum())
    assert np.array_equal(cut.frames, plain.frames)
    empty = pipeline.generate(dataclasses.replace(request, opacity_threshold_render=1.0))
    assert empty.frames is not None and (empty.frames == 255).all(), "nothing is left but the white background"


def test_the_splat_scale_of_a_pose_changes_its_frame_alone(pipeline: Pipeline, four_views: np.ndarray) -> None:
    plain = pipeline.generate(GenerationRequest("a red cube", seed=7, frame_poses=four_views, frame_size=32)).frames
    four_views[1, 3] = 0.1
    frames = pipeline.generate(GenerationRequest("a red cube", seed=7, frame_poses=four_views, frame_size=32)).frames
    assert plain is not None and frames is not None
    assert [np.array_equal(a, b) for a, b in zip(plain, frames, strict=True)] == [True, False, True, True]


def test_no_poses_no_frames(pipeline: Pipeline) -> None:
    assert pipeline.generate(GenerationRequest("x", seed=1)).frames is None
    assert pipeline.generate(GenerationRequest("x", seed=1, frame_poses=np.zeros((0, 4)))).frames is None


def test_the_bundle_itself_gives_what_its_export_gives(pico_bundle: Bundle, pipeline: Pipeline) -> None:
    request = GenerationRequest("a red cube", seed=7)
    torch_splats = Pipeline.from_bundle(pico_bundle).generate(request).splats
    served = pipeline.generate(request).splats
    assert np.abs(torch_splats - served).max() <= 1e-3 * np.abs(served).max()


class TestDirectCalls:
    """Every stage checks its own tensors."""

    @pytest.fixture
    def envelope(self, pipeline: Pipeline) -> Envelope:
        return pipeline.encode.run(GenerationRequest("a red cube", seed=1)).envelope

    @pytest.mark.parametrize("shape", [(4, 4, 8), (3, 4, 8, 8), (4, 4, 9, 8), (4, 5, 8, 8)])
    def test_latents_of_a_wrong_shape(self, pipeline: Pipeline, envelope: Envelope, shape: tuple[int, ...]) -> None:
        with pytest.raises(InvalidRequestError, match=r"LATENTS has shape .*: must be \[4, 4, 8, 8\]"):
            pipeline.decode.run(torch.zeros(shape), envelope)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -3e38])
    def test_latents_that_are_not_sensible(self, pipeline: Pipeline, envelope: Envelope, value: float) -> None:
        with pytest.raises(InvalidRequestError, match=r"LATENTS holds .*: all values must be in -1e\+06 \.\. 1e\+06"):
            pipeline.decode.run(torch.full((4, 4, 8, 8), value), envelope)

    @pytest.mark.parametrize(
        ("column", "value", "says"),
        [
            (6, 1.5, r"opacity holds 1.5: .* 0 \.\. 1"),
            (8, -1.0, r"scale holds -1: .* 0 \.\. 1e\+06"),
            (0, np.inf, r"SPLATS holds inf: .* -1e\+06 \.\. 1e\+06"),
            (12, 1e30, r"SPLATS holds 1e\+30: "),
            (3, np.nan, "SPLATS holds nan: "),
        ],
    )
    def test_splats_that_are_none(
        self, pipeline: Pipeline, envelope: Envelope, column: int, value: float, says: str
    ) -> None:
        splats = torch.full((5, 14), 0.5)
        splats[2, column] = value
        with pytest.raises(InvalidRequestError, match=says):
            pipeline.rasterize.run(splats, envelope)
        with pytest.raises(InvalidRequestError, match=says):
            pipeline.package.run(splats.numpy(), envelope)

    def test_a_crowd_of_huge_splats(self, pipeline: Pipeline, envelope: Envelope, four_views: np.ndarray) -> None:
        """What would need gigabytes of tile lists is refused with the options that led there."""
        splats = torch.full((17_000, 14), 0.5)
        splats[:, 7:10] = 100.0
        request = dataclasses.replace(envelope.request, frame_poses=four_views[:1], frame_size=2048)
        with pytest.raises(InvalidRequestError, match=r"frame_poses with frame_size = 2048: .* smaller splat_scale"):
            pipeline.rasterize.run(splats, dataclasses.replace(envelope, request=request))

    @pytest.mark.parametrize("shape", [(5, 13), (14,)])
    def test_splats_of_a_wrong_shape(self, pipeline: Pipeline, envelope: Envelope, shape: tuple[int, ...]) -> None:
        with pytest.raises(InvalidRequestError, match="SPLATS has shape"):
            pipeline.rasterize.run(torch.zeros(shape), envelope)
        with pytest.raises(InvalidRequestError, match="SPLATS has shape"):
            pipeline.package.run(np.zeros(shape, np.float32), envelope)

    @pytest.mark.parametrize("shape", [(1, 16, 96), (2, 17, 96), (2, 0, 96), (2, 16, 95)])
    def test_text_embeddings_of_a_wrong_shape(
        self, pipeline: Pipeline, envelope: Envelope, shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(InvalidRequestError, match=r"TEXT_EMBEDDINGS has shape .*: must be \[2, 1 \.\. 16, 96\]"):
            mask, pooled = torch.ones(shape[:2], dtype=torch.bool), torch.zeros(2, 0)
            pipeline.denoise.check(DenoiseWork(envelope, TextFeatures(torch.zeros(shape), mask, pooled)))


@pytest.mark.parametrize(
    ("stage", "file", "load"),
    [
        ("encode", "tokenizer.json", EncodeStage.load),
        ("encode", "export.json", EncodeStage.load),
        ("denoise", "export.json", DenoiseStage.load),
        ("decode", "export.json", DecodeStage.load),
    ],
)
def test_a_missing_file_is_named(pico_repository: Path, tmp_path: Path, stage: str, file: str, load) -> None:
    folder = shutil.copytree(pico_repository / stage / "1", tmp_path / "1")
    (folder / file).unlink()
    with pytest.raises(BundleError, match=f"{folder / file}: missing"):
        load(folder)
