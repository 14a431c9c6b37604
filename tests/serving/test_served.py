"""The real server with the real client: equal to the pipeline, streaming, stopping, whole after every bad input."""

import dataclasses
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from diffsplat_client.client import Client
from diffsplat_client.contract import ENSEMBLE
from diffsplat_client.errors import RequestCancelledError, RequestTimeoutError
from diffsplat_client.events import Finished, Progress, Queued
from diffsplat_client.generation import Generation
from diffsplat_client.poses import turntable
from diffsplat_client.request import GenerationRequest
from diffsplat_client.status import find_early_end
from diffsplat_client.transport import GrpcTransport, Tensors, TransportError

from diffsplat.serving.server import TritonServer
from tests.stream_closing import when_read

if TYPE_CHECKING:
    from diffsplat.pipeline import Pipeline, PipelineResult

pytestmark = pytest.mark.triton

TIMEOUT_S = 60.0
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
            {"scheduler": "edm", "triangle_guidance": True, "opacity_threshold_asset": 0.5},
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
        served = client.generate("a red dragon", format="ply")
        request = GenerationRequest("a red dragon", seed=served.seed)
        local = pipeline.generate(dataclasses.replace(request, format="ply"))
        assert served.asset is not None and local.asset is not None and len(served.asset) == len(local.asset)
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
            GenerationRequest("a green cube", seed=5, steps=20, format="ply"),
        ]
        with ThreadPoolExecutor(len(requests)) as pool:
            results = list(pool.map(client.generate, requests))
        for request, served in zip(requests, results, strict=True):
            local = pipeline.generate(dataclasses.replace(request, format="raw"))
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

    def test_stop_ends_a_running_request(self, wire: GrpcTransport, client: Client) -> None:
        responses = wire.stream(ENSEMBLE, LONG.to_tensors(), "to-be-stopped", TIMEOUT_S)
        assert status_of(next(responses))["step"] == 1
        assert list(wire.stream("denoise", {"STOP": np.array([True])}, "to-be-stopped", TIMEOUT_S)) == []
        *_, last = [status_of(response) for response in responses]
        assert last["phase"] == "ended" and last["end_state"] == "cancelled" and last["error_type"] == "CANCELLED"
        assert last["step"] < LONG.steps, "it went on to its end"
        client.generate("a red cube", steps=1)

    def test_a_stop_for_nobody_is_answered(self, wire: GrpcTransport) -> None:
        assert list(wire.stream("denoise", {"STOP": np.array([True])}, "nobody", TIMEOUT_S)) == []

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
        while f"request {request_id}: stop asked for, 1 found" not in server.log_path.read_text():
            assert time.monotonic() < deadline, "no STOP reached the engine"
            time.sleep(0.05)

    def test_a_stream_closed_by_another_thread(self, client: Client) -> None:
        with client.stream(LONG) as events:
            next(events)
            closer = when_read(events, events.close)
            with pytest.raises(RequestCancelledError):
                list(events)
            closer.join(TIMEOUT_S)


def status_of(tensors: Tensors) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(tensors["STATUS"][0])
    return status


def text(*values: bytes) -> np.ndarray:
    return np.array(values, dtype=np.object_)


def poses(count: int, **columns: float) -> np.ndarray:
    array = np.tile(np.array([10, 0, 1.4, 1], np.float32), (count, 1))
    for index, value in columns.items():
        array[-1, int(index[1:])] = value
    return array


# what replaces tensors of a good request -> what the error must say
BAD_INPUTS: dict[str, tuple[Tensors, list[str]]] = {
    "empty prompt": ({"PROMPT": text(b"")}, ["prompt = ''", "at least one character"]),
    "blank prompt": ({"PROMPT": text(b" \n")}, ["prompt", "at least one character"]),
    "long prompt": ({"PROMPT": text(b"x" * 2001)}, ["prompt has 2001 characters", "2000"]),
    "prompt not UTF-8": ({"PROMPT": text(b"\xff\xfe")}, ["prompt", "UTF-8"]),
    "prompt of many bytes": ({"PROMPT": text(b"x" * 8001)}, ["prompt has 8001 bytes", "8000"]),
    "scheduler of many bytes": ({"SCHEDULER": text(b"x" * 100_000)}, ["scheduler has 100000 bytes", "8000"]),
    "two prompts": ({"PROMPT": text(b"a", b"b")}, ["PROMPT", "[1]", "[2]"]),
    "unknown scheduler": ({"SCHEDULER": text(b"magic")}, ["scheduler = 'magic'", "ddim, dpmsolver++"]),
    "scheduler of another process": ({"SCHEDULER": text(b"flow")}, ["scheduler = 'flow'", "edm"]),
    "no steps": ({"STEPS": np.array([0], np.int32)}, ["steps = 0", "1 .. 200"]),
    "many steps": ({"STEPS": np.array([201], np.int32)}, ["steps = 201", "1 .. 200"]),
    "steps of a wrong type": ({"STEPS": np.array([4], np.float32)}, ["STEPS", "FP32", "INT32"]),
    "steps of a wrong shape": ({"STEPS": np.array([4, 4], np.int32)}, ["STEPS", "[1]", "[2]"]),
    "much guidance": ({"GUIDANCE_SCALE": np.array([51], np.float32)}, ["guidance_scale = 51", "0.0 .. 50.0"]),
    "guidance NaN": ({"GUIDANCE_SCALE": np.array([np.nan], np.float32)}, ["guidance_scale = nan", "0.0 .. 50.0"]),
    "distance infinite": ({"DISTANCE": np.array([np.inf], np.float32)}, ["distance = inf", "0.5 .. 10.0"]),
    "elevation": ({"ELEVATION_DEG": np.array([95], np.float32)}, ["elevation_deg = 95", "-89.0 .. 89.0"]),
    "negative seed": ({"SEED": np.array([-1], np.int64)}, ["seed = -1", "0 .. "]),
    "unknown format": ({"FORMAT": text(b"obj")}, ["format = 'obj'", "raw, ply"]),
    "opacity": ({"OPACITY_THRESHOLD_ASSET": np.array([2], np.float32)}, ["opacity_threshold_asset = 2", "1.0"]),
    "pose NaN": ({"FRAME_POSES": poses(2, c1=np.nan)}, ["frame_poses[1] azimuth_deg = nan", "-3600 .. 3600"]),
    "pose too near": ({"FRAME_POSES": poses(3, c2=0.1)}, ["frame_poses[2] distance = 0.1", "0.5 .. 10"]),
    "poses of a wrong shape": ({"FRAME_POSES": np.zeros((2, 3), np.float32)}, ["FRAME_POSES", "[-1,4]", "[2,3]"]),
    "absurdly many frames": ({"FRAME_POSES": poses(100_000)}, ["100000 frames", "720"]),
    "absurdly large frames": ({"FRAME_SIZE": np.array([100_000], np.int32)}, ["frame_size = 100000", "16 .. 2048"]),
    "too many pixels": (
        {"FRAME_POSES": poses(720), "FRAME_SIZE": np.array([2048], np.int32)},
        ["frame_poses x frame_size", "720 x 2048 x 2048", "100000000"],
    ),
    "unknown input": ({"COLOUR": np.array([1], np.int32)}, ["COLOUR"]),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_refused_before_it_is_queued_with_its_reason(wire: GrpcTransport, case: str) -> None:
    tensors, says = BAD_INPUTS[case]
    with pytest.raises(TransportError) as caught:
        next(wire.stream(ENSEMBLE, {**LONG.to_tensors(), **tensors}, case, TIMEOUT_S))  # no progress comes first
    assert caught.value.code == "INVALID_ARGUMENT", caught.value
    for words in says:
        assert words in caught.value.message, caught.value.message


@pytest.mark.parametrize("tensors", [{}, {"STEPS": np.array([4], np.int32)}], ids=["nothing", "steps"])
def test_a_missing_prompt_is_refused(wire: GrpcTransport, tensors: Tensors) -> None:
    with pytest.raises(TransportError, match="INVALID_ARGUMENT: prompt is missing"):
        list(wire.stream(ENSEMBLE, tensors, "no-prompt", TIMEOUT_S))


ENVELOPE = json.dumps(
    {
        "request": {
            "prompt": "x", "seed": 1, "steps": 2, "scheduler": "ddim", "eta": 0.0, "guidance_scale": 3.0,
            "elevation_deg": 10.0, "distance": 1.4,
        }
    }
).encode()  # fmt: skip
DIRECT_CALLS: dict[str, tuple[str, Tensors, str]] = {
    "stop without id": ("denoise", {"STOP": np.array([True])}, "STOP needs the id"),
    "nothing": ("denoise", {}, "REQUEST is missing"),
    "no JSON": ("denoise", {"REQUEST": text(b"{")}, "REQUEST must be JSON"),
    "a number too big for a float": (
        "denoise",
        {"REQUEST": text(ENVELOPE[:-1] + b', "timings_ms": {"encode": 1' + b"0" * 400 + b"}}")},
        "REQUEST must be JSON",
    ),
    "a pose too big for a float": (
        "denoise",
        {"REQUEST": text(ENVELOPE[:-2] + b', "frame_poses": [[1' + b"0" * 400 + b", 0, 1, 1]]}}")},
        "REQUEST is not the JSON form",
    ),
    "deep JSON": ("denoise", {"REQUEST": text(b"[" * 100_000)}, "REQUEST must be JSON"),
    "long JSON": (
        "denoise",
        {"REQUEST": text(ENVELOPE[:-1] + b', "warnings": ["' + b"x" * 1_000_000 + b'"]}')},
        "REQUEST has .* bytes: at most 1000000",
    ),
    "no embeddings": ("denoise", {"REQUEST": text(ENVELOPE)}, "TEXT_EMBEDDINGS is missing"),
    "embeddings too wide": (
        "denoise",
        {"REQUEST": text(ENVELOPE), "TEXT_EMBEDDINGS": np.zeros((2, 16, 97), np.float32)},
        "TEXT_EMBEDDINGS has shape",
    ),
    "embeddings NaN": (
        "denoise",
        {"REQUEST": text(ENVELOPE), "TEXT_EMBEDDINGS": np.full((2, 16, 96), np.nan, np.float32)},
        "TEXT_EMBEDDINGS holds nan",
    ),
    "embeddings that overflow": (
        "denoise",
        {"REQUEST": text(ENVELOPE), "TEXT_EMBEDDINGS": np.full((2, 16, 96), 3e38, np.float32)},
        "TEXT_EMBEDDINGS holds 3e\\+38",
    ),
    "latents alone": ("decode", {"LATENTS": np.zeros((4, 4, 8, 8), np.float32)}, "RESOLVED_REQUEST is missing"),
    "latents of a wrong size": (
        "decode",
        {"LATENTS": np.zeros((4, 4, 9, 9), np.float32), "RESOLVED_REQUEST": text(ENVELOPE)},
        "LATENTS has shape",
    ),
    "splats NaN": (
        "rasterize",
        {"SPLATS": np.full((3, 14), np.nan, np.float32), "DECODED_REQUEST": text(ENVELOPE)},
        "SPLATS holds nan",
    ),
    "splats of negative size": (
        "package",
        {
            "SPLATS": np.full((3, 14), -0.5, np.float32) + np.eye(14, dtype=np.float32)[6],
            "DECODED_REQUEST": text(ENVELOPE),
        },
        "SPLATS scale holds -0.5",
    ),
    "splats without request": ("package", {"SPLATS": np.zeros((3, 14), np.float32)}, "DECODED_REQUEST is missing"),
}


@pytest.mark.parametrize("case", DIRECT_CALLS)
def test_every_stage_checks_what_it_is_given(wire: GrpcTransport, case: str) -> None:
    """`denoise` refuses with an error response, what comes after it with a tensor: see contract.END_STATES."""
    model, tensors, says = DIRECT_CALLS[case]
    if model == "denoise":
        with pytest.raises(TransportError, match=says) as caught:
            list(wire.stream(model, tensors, "", TIMEOUT_S))
        assert caught.value.code == "INVALID_ARGUMENT"
    else:
        (answer,) = wire.stream(model, tensors, "", TIMEOUT_S)
        end = find_early_end(answer)
        assert set(answer) == {f"EARLY_END_{model.upper()}"} and end is not None
        assert (end.state, end.error_type) == ("failed", "INVALID_ARG") and re.search(says, end.message)


@pytest.mark.parametrize(
    "request_id", ["a\nINFO forged", "x" * 129, "\x1b[2J", "ü"], ids=["line", "long", "escape", "ü"]
)
def test_ids_that_could_forge_a_log_are_refused(wire: GrpcTransport, server: TritonServer, request_id: str) -> None:
    for model, tensors in ((ENSEMBLE, LONG.to_tensors()), ("denoise", {"STOP": np.array([True])})):
        with pytest.raises(TransportError, match="request id = .* at most 128 printable ASCII characters") as caught:
            list(wire.stream(model, tensors, request_id, TIMEOUT_S))
        assert caught.value.code == "INVALID_ARGUMENT"
    assert "\nINFO forged" not in server.log_path.read_text()


class TestDeadlines:
    """Requests that are too late cost nothing, wherever they are."""

    def test_an_expired_request_is_not_denoised(self, wire: GrpcTransport) -> None:
        tensors = {**LONG.to_tensors(), "DEADLINE_S": np.zeros(1, np.float32)}
        responses = [status_of(response) for response in wire.stream(ENSEMBLE, tensors, "late", TIMEOUT_S)]
        assert {status["step"] for status in responses} == {0}
        assert responses[-1]["end_state"] == "expired" and responses[-1]["error_type"] == "DEADLINE_EXCEEDED"

    @pytest.mark.parametrize("option", ["deadline_s", "start_deadline_s"])
    def test_the_client_names_the_deadline(self, client: Client, option: str) -> None:
        with pytest.raises(RequestTimeoutError, match=f"{option} passed while the request waited"):
            client.generate(LONG, **{option: 0.0})

    @pytest.mark.parametrize("model", ["decode", "rasterize", "package"])
    def test_later_stages_skip_expired_work(self, wire: GrpcTransport, model: str) -> None:
        source, request, shape = {
            "decode": ("LATENTS", "RESOLVED_REQUEST", (4, 4, 8, 8)),
            "rasterize": ("SPLATS", "DECODED_REQUEST", (3, 14)),
            "package": ("SPLATS", "DECODED_REQUEST", (3, 14)),
        }[model]
        late = {**json.loads(ENVELOPE), "deadlines": [None, time.monotonic()]}
        tensors = {source: np.zeros(shape, np.float32), request: text(json.dumps(late).encode())}
        (answer,) = wire.stream(model, tensors, "", TIMEOUT_S)
        end = find_early_end(answer)
        assert set(answer) == {f"EARLY_END_{model.upper()}"} and end is not None
        assert end.state == "expired" and f"before {model} could start" in end.message


def test_an_empty_call_of_a_later_stage_costs_nothing_and_gives_nothing(wire: GrpcTransport) -> None:
    for model in ("decode", "rasterize", "package"):
        assert list(wire.stream(model, {}, "", TIMEOUT_S)) == [{}]


def test_after_all_that_the_server_serves_and_hides_nothing(
    server: TritonServer, client: Client, pipeline: "Pipeline"
) -> None:
    """Runs last: the same object as ever, every model ready, no traceback in the log, and only loopback addresses."""
    request = GenerationRequest("a red cube", seed=42)
    assert_same_object(client.generate(request), pipeline.generate(request), 1e-5)
    status = client.status()
    assert status.ready and {model.state for model in status.models} == {"READY"}
    assert "Traceback" not in server.log_path.read_text()
    assert server.grpc_url.startswith("127.0.0.1:") and server.metrics_url.startswith("http://127.0.0.1:")
    assert server.http_url is None
