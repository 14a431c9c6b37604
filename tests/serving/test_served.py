"""The real server with the real client: equal to the pipeline, streaming, stopping, whole after every bad input."""

import dataclasses
import json
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from diffsplat_client.client import Client
from diffsplat_client.contract import ENSEMBLE
from diffsplat_client.errors import RequestCancelledError
from diffsplat_client.events import Finished, Preview, Progress, Queued
from diffsplat_client.formats import FORMATS
from diffsplat_client.generation import Generation
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.poses import turntable
from diffsplat_client.request import GenerationRequest
from diffsplat_client.transport import Tensors

from diffsplat.serving.server.metrics import read_metrics
from diffsplat.serving.server.server import TritonServer
from tests.serving.processes import TIMEOUT_S
from tests.stream_closing import when_read

if TYPE_CHECKING:
    from diffsplat.pipeline import Pipeline, PipelineResult

pytestmark = pytest.mark.triton

LONG = GenerationRequest("a red cube", seed=1, steps=200)


def assert_same_object(served: Generation, local: "PipelineResult", tolerance: float) -> None:
    assert local.gaussians is not None
    array = served.cloud.to_array()
    assert array.shape == local.gaussians.shape
    assert np.abs(array - local.gaussians).max() <= tolerance * max(1.0, float(np.abs(local.gaussians).max()))


class TestEqualsThePipeline:
    """The ensemble and `pipeline.py` give the same numbers for the same request."""

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"scheduler": "sde-dpmsolver++", "steps": 3, "negative_prompt": "a green cone"},
            {"scheduler": "ddim", "eta": 1.0, "guidance_scale": 1.0, "elevation_deg": -20.0, "distance": 2.0},
            {"scheduler": "edm", "triangle_guidance": True, "opacity_threshold_asset": 0.5, "num_gaussians": 100},
        ],
        ids=["defaults", "sde", "ddim", "edm"],
    )
    def test_splats_and_frames(self, client: Client, pipeline: "Pipeline", four_views: np.ndarray, options) -> None:
        request = GenerationRequest("a red cube", seed=42, frame_poses=four_views, frame_size=64, **options)
        served, local = client.generate(request), pipeline.generate(request)
        assert_same_object(served, local, 1e-5)
        assert served.frames is not None and local.frames is not None
        assert np.abs(served.frames.astype(int) - local.frames.astype(int)).max() <= 1
        assert served.seed == 42 and served.elevation_deg == (options.get("elevation_deg", 10.0))

    def test_file_drawn_seed_warnings_and_timings(self, client: Client, pipeline: "Pipeline") -> None:
        served = client.generate("a red dragon", formats=("ply", "spz"))
        request = GenerationRequest("a red dragon", seed=served.seed)
        local = pipeline.generate(dataclasses.replace(request, formats=("ply", "spz")))
        assert len(served.assets["ply"]) == len(local.assets["ply"]) and set(served.assets) == {"ply", "spz"}
        assert len(FORMATS["spz"].read(served.assets["spz"])) == len(served.cloud)
        assert_same_object(served, pipeline.generate(request), 1e-4)  # logits and logarithms lie between
        assert served.frames is None
        assert served.warnings == ("prompt: the text encoder does not know 'dragon'",)
        spent = served.timings_ms
        in_turn = sum(spent[stage] for stage in ("encode", "queued", "denoise", "decode"))
        assert in_turn + max(spent["rasterize"], spent["package"]) <= spent["total"]

    def test_splats_that_grow_from_nothing(self, client: Client, pipeline: "Pipeline") -> None:
        """The first pose of such a turntable has a splat scale of 0."""
        request = GenerationRequest("a red cube", seed=1, steps=2, frame_poses=turntable(4, grow=True), frame_size=32)
        served, local = client.generate(request), pipeline.generate(request)
        assert served.frames is not None and local.frames is not None
        assert np.abs(served.frames.astype(int) - local.frames.astype(int)).max() <= 1
        assert (served.frames[0] == 255).all() and (served.frames[-1] != 255).any()

    def test_requests_at_the_same_time_equal_their_single_runs(self, client: Client, pipeline: "Pipeline") -> None:
        """They are denoised together, at different steps of different schedules, and end in any order."""
        requests = [
            GenerationRequest("a red cube", seed=1, steps=40),
            GenerationRequest("a blue cone", seed=2, steps=25, scheduler="ddim"),
            GenerationRequest("a green sphere", seed=3, steps=30, scheduler="sde-dpmsolver++", guidance_scale=1.0),
            GenerationRequest("a red cone", seed=4, steps=10, scheduler="edm"),
            GenerationRequest("a green cube", seed=5, steps=20, formats=("ply",)),
        ]
        with ThreadPoolExecutor(len(requests)) as pool:
            results = list(pool.map(client.generate, requests))
        for request, served in zip(requests, results, strict=True):
            local = pipeline.generate(dataclasses.replace(request, formats=("raw",)))
            assert_same_object(served, local, 1e-3)


class TestStreaming:
    """What is told while a request runs."""

    def test_progress_arrives_while_the_request_runs(self, client: Client) -> None:
        """That it still runs when its progress arrives is what the tests of stopping show."""
        with client.stream(LONG) as events:
            *seen, last = [event for event in events if not isinstance(event, Queued)]
        assert isinstance(last, Finished)
        steps = [progress.step for progress in seen]
        assert steps[0] == 1 and steps == sorted(set(steps)) and steps[-1] <= 200
        for progress in seen:
            assert isinstance(progress, Progress)
            assert progress.seed == 1 and progress.steps == 200 and progress.seconds_left is not None

    def test_previews_are_those_of_the_pipeline(self, client: Client, pipeline: "Pipeline") -> None:
        from diffsplat.stages.preview import PreviewStage

        request = GenerationRequest("a red cube", seed=1, steps=100, preview_every=25, num_gaussians=200)
        with client.stream(request) as events:
            *seen, last = [event for event in events if not isinstance(event, Queued)]
        previews = [event for event in seen if isinstance(event, Preview)]
        progress = [event for event in seen if isinstance(event, Progress)]
        assert isinstance(last, Finished) and len(last.result.cloud) == 200
        assert [preview.number for preview in previews] == list(range(1, len(previews) + 1)) and previews
        assert len(previews) + progress[-1].previews_skipped == 3, "what is not shown is counted"
        job, stage = pipeline.denoise.start(pipeline.encode.run(request)), PreviewStage(pipeline.decode)
        for preview in previews:
            assert preview.step % 25 == 0 and preview.seed == 1
            while job.step < preview.step:
                pipeline.denoise.step([job])
            local = stage.run(job)
            assert preview.cloud.to_array().shape == local.shape == (200, 14)
            assert np.abs(preview.cloud.positions.mean(axis=0) - local[:, :3].mean(axis=0)).max() < 1e-3

    def test_several_seeds_are_single_runs_that_share_their_text(
        self, client: Client, pipeline: "Pipeline", server: TritonServer, four_views: np.ndarray
    ) -> None:
        request = GenerationRequest("a red cube", seed=5, steps=6, frame_poses=four_views, frame_size=32)
        encoded = runs_of("encode", server)
        several = dataclasses.replace(request, num_seeds=6, preview_every=2, formats=("ply", "raw"))
        results = client.generate_all(several)
        assert runs_of("encode", server) == encoded + 1
        assert [(result.index, result.seed) for result in results] == [(index, 5 + index) for index in range(6)]
        for result in results:
            local = pipeline.generate(dataclasses.replace(request, seed=result.seed))
            assert_same_object(result, local, 1e-3)
            assert result.frames is not None and local.frames is not None
            assert np.abs(result.frames.astype(int) - local.frames.astype(int)).max() <= 8
            assert set(result.assets) == {"ply"} and result.timings_ms["rasterize"] > 0

    def test_a_stop_ends_all_seeds_and_leaves_room(self, client: Client, wire: GrpcTransport) -> None:
        request = dataclasses.replace(LONG, num_seeds=4)
        responses = wire.stream(ENSEMBLE, request.to_tensors(), "many", TIMEOUT_S)
        seen = {status_of(next(responses))["index"]}
        assert stop(wire, "many") == "requested"
        *_, last = [status_of(response) for response in responses]
        assert last["phase"] == "ended" and last["end_state"] == "cancelled" and last["results"] == 4 and seen
        assert stop(wire, "many") == "already_finished"
        client.generate("a red cube", steps=1)

    def test_stop_ends_a_running_request(self, wire: GrpcTransport, client: Client) -> None:
        responses = wire.stream(ENSEMBLE, LONG.to_tensors(), "to-be-stopped", TIMEOUT_S)
        assert status_of(next(responses))["step"] == 1
        assert stop(wire, "to-be-stopped") == "requested"
        *_, last = [status_of(response) for response in responses]
        assert last["phase"] == "ended" and last["end_state"] == "cancelled" and last["error_type"] == "CANCELLED"
        assert last["step"] < LONG.steps, "it went on to its end"
        assert stop(wire, "to-be-stopped") == "already_finished"
        client.generate("a red cube", steps=1)

    def test_a_stop_for_nobody_is_answered(self, wire: GrpcTransport) -> None:
        assert stop(wire, "nobody") == "not_found"

    def test_a_client_that_leaves_stops_its_request(self, client: Client, server: TritonServer) -> None:
        with client.stream(LONG) as events:
            next(events)
            request_id = events.request_id
        self.wait_for_stop(server, request_id)

    def test_a_client_that_is_closed_stops_its_requests(self, server: TritonServer) -> None:
        client = Client(server.grpc_url, timeout_s=TIMEOUT_S)
        events = client.stream(LONG)
        next(events)
        client.close()
        self.wait_for_stop(server, events.request_id)
        events.close()  # nothing is left to do

    def wait_for_stop(self, server: TritonServer, request_id: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while f"request {request_id}: stop asked for, requested" not in server.log_path.read_text():
            assert time.monotonic() < deadline, "no STOP reached the engine"
            time.sleep(0.05)

    def test_a_stream_closed_by_another_thread(self, client: Client) -> None:
        with client.stream(LONG) as events:
            next(events)
            closer = when_read(events, events.close)
            with pytest.raises((RequestCancelledError, StopIteration)):  # while the reader waits, or between two events
                while True:
                    next(events)
            closer.join(TIMEOUT_S)


def stop(wire: GrpcTransport, request_id: str) -> str:
    """The answer to a STOP, which is all that comes."""
    (answer,) = wire.stream("denoise", {"STOP": np.array([True])}, request_id, TIMEOUT_S)
    (said,) = answer.values()
    text: bytes = said.item()
    return text.decode()


def test_the_metrics_page_shows_what_the_engine_does(client: Client, server: TritonServer, wire: GrpcTransport) -> None:
    before = engine_counts(read_metrics(server.metrics_url))
    client.generate("a red cube", steps=3, priority=1)
    with client.stream(LONG) as events:
        next(events)
    request = {**LONG.to_tensors(), "DEADLINE_S": np.zeros(1, np.float32)}
    assert list(wire.stream(ENSEMBLE, request, "late", TIMEOUT_S))
    deadline, changes = time.monotonic() + TIMEOUT_S, Counter[str]()
    while changes["cancelled"] + changes["aborted"] < 1:  # its STOP works at the next step
        assert time.monotonic() < deadline, changes
        changes = Counter(engine_counts(page := read_metrics(server.metrics_url)))
        changes.subtract(before)
    assert changes["finished"] == changes["expired"] == 1 and not changes["failed"]
    assert changes["queue"] == changes["first_progress"] == 2 and changes["batch_size"] == changes["step"] >= 1
    for state in ("active", "paused", "waiting"):
        assert f'diffsplat_denoise_requests{{state="{state}",version="1"}} ' in page


def runs_of(model: str, server: TritonServer) -> int:
    """Requests that a model has answered."""
    page = read_metrics(server.metrics_url)
    return sum(
        map(int, re.findall(rf'^nv_inference_request_success\{{model="{model}",.*\}} (\d+)$', page, re.MULTILINE))
    )


def engine_counts(page: str) -> dict[str, int]:
    """Observations of each histogram; those of whole requests by end state."""
    counts = re.findall(r"^diffsplat_denoise_(\w+?)(?:_seconds)?_count\{(.*)\} (\d+)$", page, re.MULTILINE)
    assert {name for name, _, _ in counts} == {"batch_size", "step", "queue", "first_progress", "request"}
    return {
        state[1] if (state := re.search(r'end_state="(\w+)"', labels)) else name: int(count)
        for name, labels, count in counts
    }


def status_of(tensors: Tensors) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(tensors["STATUS"][0])
    return status
