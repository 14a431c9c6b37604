"""The real server and bad input of every kind: refused by name before it costs anything; the server stays whole."""

import json
import re
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest
from diffsplat_client.client import Client
from diffsplat_client.contract import ENSEMBLE
from diffsplat_client.errors import RequestTimeoutError
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.request import GenerationRequest
from diffsplat_client.status import find_early_end
from diffsplat_client.transport import Tensors, TransportError

from diffsplat.serving.server.server import TritonServer
from tests.serving.processes import TIMEOUT_S

if TYPE_CHECKING:
    from diffsplat.pipeline import Pipeline

pytestmark = pytest.mark.triton

LONG = GenerationRequest("a red cube", seed=1, steps=200)


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
    "unknown format": ({"FORMATS": text(b"obj")}, ["formats = 'obj'", "raw, ply"]),
    "too many seeds": ({"NUM_SEEDS": np.array([17], np.int32)}, ["num_seeds = 17", "1 .. 16"]),
    "no splats": ({"NUM_GAUSSIANS": np.array([0], np.int32)}, ["num_gaussians = 0", "1 .. 4194304"]),
    "no format": ({"FORMATS": np.empty(0, np.object_)}, ["formats = ()", "raw, ply"]),
    "too many formats": ({"FORMATS": np.array([b"ply"] * 65, np.object_)}, ["formats has 65 elements", "at most 64"]),
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
        assert set(answer) - {f"INDEX_{model.upper()}"} == {f"EARLY_END_{model.upper()}"} and end is not None
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
        responses = wire.stream(ENSEMBLE, tensors, "late", TIMEOUT_S)
        statuses = [json.loads(response["STATUS"][0]) for response in responses]
        assert {status["step"] for status in statuses} == {0}
        assert statuses[-1]["end_state"] == "expired" and statuses[-1]["error_type"] == "DEADLINE_EXCEEDED"

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
        assert set(answer) - {f"INDEX_{model.upper()}"} == {f"EARLY_END_{model.upper()}"} and end is not None
        assert end.state == "expired" and f"before {model} could start" in end.message


def test_an_empty_call_of_a_later_stage_costs_nothing_and_gives_nothing(wire: GrpcTransport) -> None:
    for model in ("decode", "rasterize", "package"):
        assert list(wire.stream(model, {}, "", TIMEOUT_S)) == [{}]


def test_after_all_that_the_server_serves_and_hides_nothing(
    server: TritonServer, client: Client, pipeline: "Pipeline"
) -> None:
    """Runs last: the same object as ever, every model ready, no traceback in the log, and only loopback addresses."""
    request = GenerationRequest("a red cube", seed=42)
    served, local = client.generate(request).cloud.to_array(), pipeline.generate(request).gaussians
    assert local is not None and np.abs(served - local).max() <= 1e-5 * np.abs(local).max()
    status = client.status()
    assert status.ready and {model.state for model in status.models} == {"READY"}
    assert status.parameters["device"] == "cpu" and status.parameters["graphs"].startswith("text_encoder ")
    assert "Traceback" not in server.log_path.read_text()
    assert server.grpc_url.startswith("127.0.0.1:") and server.metrics_url.startswith("http://127.0.0.1:")
    assert server.http_url is None
