"""The HTTP front over real sockets, in front of a scripted Triton."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from diffsplat_client.formats.ply import decode_ply
from tritonclient.grpc import service_pb2 as pb

from diffsplat.serving.edge.clients import ClientLimits, Clients
from diffsplat.serving.edge.dispatch import Dispatcher
from diffsplat.serving.edge.http_front import HttpFront
from diffsplat.serving.edge.identity import Doorman, TokenFile
from diffsplat.serving.edge.request_log import RequestLog
from diffsplat.serving.edge.results_store import KeepPolicy, ResultStore
from tests.serving.edge.scripted import ScriptedUpstream, answer, failure, status
from tests.serving.processes import TIMEOUT_S

CUBE = {"prompt": "a red cube", "steps": 4}
RESULT = answer(STATUS=status("finished", 20), ASSETS=[b"ply\nfile", b"spz file"], ASSET_FORMATS=[b"ply", b"spz"])
TOKEN = "correct-horse-battery-staple"


def step(number: int) -> bytes:
    return answer(STATUS=status("denoising", number, queue_position=0, seconds_left=1.5, warnings=["prompt cut"]))


class Front:
    """An HTTP client of a front, and what is behind it."""

    def __init__(self, upstream: ScriptedUpstream, doorman: Doorman) -> None:
        clients, store = Clients(ClientLimits(max_requests=2)), ResultStore(KeepPolicy())
        self.upstream, self.clients, self.store = upstream, clients, store
        self.dispatcher = Dispatcher(upstream, upstream, clients, store, (RequestLog(None),))
        self.front = HttpFront(self.dispatcher, clients, doorman, max_request_bytes=100_000)
        self.http: Any = TestClient(TestServer(self.front.app))

    async def post(self, body: Any = CUBE, **headers: str) -> Any:
        answered = await self.http.post("/v1/splats", json=body, headers=headers)
        return answered, await answered.json()

    async def get(self, address: str) -> Any:
        answered = await self.http.get(address)
        return answered, await answered.json()

    async def until_ended(self, job: dict[str, str]) -> dict[str, Any]:
        while (standing := (await self.get(job["status_url"]))[1])["state"] == "running":
            await asyncio.sleep(0.005)
        return standing


def drive(work: Callable[[Front], Awaitable[None]], *scripts: list[object], doorman: Doorman | None = None) -> None:
    async def run() -> None:
        front = Front(ScriptedUpstream(*scripts), doorman or Doorman())
        async with front.http:
            await work(front)
        await front.clients.close()
        front.store.close()

    asyncio.run(asyncio.wait_for(run(), TIMEOUT_S))


def test_a_request_is_sent_watched_and_fetched() -> None:
    go = asyncio.Event()

    async def work(front: Front) -> None:
        answered, job = await front.post(**{"Idempotency-Key": "my-cube"})
        assert answered.status == 202 and answered.headers["Location"] == job["status_url"] == "/v1/splats/my-cube"
        while (standing := (await front.get(job["status_url"]))[1])["step"] != 2:
            await asyncio.sleep(0.005)
        assert standing["state"] == "running" and standing["phase"] == "denoising" and standing["steps"] == 20
        assert standing["seconds_left"] == 1.5 and standing["warnings"] == ["prompt cut"]
        early, _ = await front.get(job["result_url"])
        assert early.status == 409 and early.headers["Retry-After"] == "1"
        go.set()
        assert (await front.until_ended(job))["state"] == "finished"
        result = await front.http.get(job["result_url"])
        assert result.status == 200 and await result.read() == b"ply\nfile"
        assert result.headers["Content-Disposition"] == 'attachment; filename="splats.ply"'
        other = await front.http.get(job["result_url"] + "?format=spz")
        assert await other.read() == b"spz file"
        assert other.headers["Content-Disposition"] == 'attachment; filename="splats.spz"'
        missing, said = await front.get(job["result_url"] + "?format=glb")
        assert missing.status == 404 and said["error"] == "format = 'glb': the result has ply, spz"
        answered, again = await front.post(**{"Idempotency-Key": "my-cube"})
        assert answered.status == 202 and again == job and len(front.upstream.requests) == 1

    drive(work, [step(1), step(2), go, RESULT])


def test_the_request_that_triton_gets_is_the_one_that_was_sent() -> None:
    async def work(front: Front) -> None:
        image = bytes(range(256))
        body = {"prompt": "ü", "seed": 7, "guidance_scale": 3.5, "image": base64.b64encode(image).decode()}
        _, job = await front.post(body)
        await front.until_ended(job)
        (asked,) = front.upstream.requests
        sent = {tensor.name: raw for tensor, raw in zip(asked.inputs, asked.raw_input_contents, strict=True)}
        assert sent["PROMPT"] == b"\2\0\0\0" + "ü".encode() and sent["IMAGE"][4:] == image
        assert sent["SEED"] == (7).to_bytes(8, "little") and sent["FORMATS"][4:] == b"ply"
        assert isinstance(asked, pb.ModelInferRequest) and not asked.parameters and asked.id != job["id"]

    drive(work, [RESULT])


@pytest.mark.parametrize(
    ("says", "retry_after", "shown"),
    [
        ("in ensemble 'diffsplat', OVERLOADED: 64 wait [retry_after_s=2.5]", "3", "64 wait"),
        ("OVERLOADED: 64 wait", "1", "64 wait"),
    ],
)
def test_an_overloaded_server_says_when_to_come_back(says: str, retry_after: str, shown: str) -> None:
    async def work(front: Front) -> None:
        _, job = await front.post(**{"Idempotency-Key": "my-cube"})
        standing = await front.until_ended(job)
        assert (standing["state"], standing["error_type"], standing["error"]) == ("failed", "OVERLOADED", shown)
        answered, _ = await front.get(job["result_url"])
        assert answered.status == 503 and answered.headers["Retry-After"] == retry_after
        await front.post(**{"Idempotency-Key": "my-cube"})
        assert (await front.until_ended(job))["state"] == "finished", "sent again it is computed"

    drive(work, [failure(says)], [RESULT])


def test_events_tell_every_step_and_the_end() -> None:
    go = asyncio.Event()

    async def work(front: Front) -> None:
        _, job = await front.post()
        stream = await front.http.get(job["events_url"])
        assert stream.headers["Content-Type"] == "text/event-stream"
        go.set()
        text = (await stream.read()).decode()
        events = [event.split("\n") for event in text.strip().split("\n\n")]
        assert [name for name, _ in events][-1] == "event: finished" and events[0][0] == "event: progress"
        last = json.loads(events[-1][1].removeprefix("data: "))
        assert last["state"] == "finished" and last["result_bytes"] > 0

    drive(work, [go, step(1), RESULT])


def test_previews_are_announced_and_fetched_while_the_request_runs() -> None:
    go = asyncio.Event()
    splats = np.random.default_rng(0).random((5, 14), dtype=np.float32)

    def shown(number: int) -> bytes:
        message = pb.ModelStreamInferResponse.FromString(
            answer(STATUS=status("denoising", 5 * number, previews=number, previews_skipped=1))
        )
        message.infer_response.outputs.add(name="PREVIEW", datatype="FP32", shape=[5 - number, 14])
        message.infer_response.raw_output_contents.append(splats[number:].tobytes())
        return message.SerializeToString()

    async def work(front: Front) -> None:
        _, job = await front.post({**CUBE, "preview_every": 5})
        early, said = await front.get(job["preview_url"])
        assert early.status == 404 and said["error"] == "this request shows no preview now"
        stream = await front.http.get(job["events_url"])
        begin.set()
        while (standing := (await front.get(job["status_url"]))[1])["previews"] != 2:
            await asyncio.sleep(0.005)
        assert standing["previews_skipped"] == 1
        preview = await front.http.get(job["preview_url"])
        assert np.allclose(decode_ply(await preview.read()).positions, splats[2:, :3])
        go.set()
        names = [line for line in (await stream.read()).decode().split("\n") if line.startswith("event: ")]
        assert names.count("event: preview") in (1, 2) and names[-1] == "event: finished"
        over, _ = await front.get(job["preview_url"])
        assert over.status == 404
        kept = await front.http.get(job["events_url"])
        assert (await kept.read()).decode().count("event: ") == 1, "old previews are not repeated"

    begin = asyncio.Event()
    drive(work, [begin, shown(1), shown(2), go, RESULT])


def test_each_preview_of_several_seeds_is_announced_once() -> None:
    def of(index: int, number: int, previews: int) -> bytes:
        return answer(STATUS=status("denoising", number, index=index, results=2, previews=previews))

    async def work(front: Front) -> None:
        _, job = await front.post({**CUBE, "num_seeds": 2})
        stream = await front.http.get(job["events_url"])
        events: list[tuple[str, int]] = []
        go[0].set()
        name = ""
        while line := (await stream.content.readline()).decode():
            if line.startswith("event: "):
                name = line.removeprefix("event: ").strip()
            elif line.startswith("data: "):
                events.append((name, json.loads(line.removeprefix("data: "))["index"]))
                if len(events) < len(go):
                    go[len(events)].set()
        told = [("preview", 0), ("progress", 1), ("progress", 0), ("preview", 1)]
        assert events[:4] == told and events[-1][0] == "finished"

    go = [asyncio.Event() for _ in range(5)]
    messages = [of(0, 5, 1), of(1, 4, 0), of(0, 6, 1), of(1, 5, 1), RESULT]
    drive(work, [part for pair in zip(go, messages, strict=True) for part in pair])


def test_results_of_several_seeds_are_fetched_by_index() -> None:
    def result(index: int) -> bytes:
        message = pb.ModelStreamInferResponse.FromString(
            answer(STATUS=status("finished", 20, index=index), ASSETS=[b"%d" % index], ASSET_FORMATS=[b"ply"])
        )
        message.infer_response.outputs.add(name="INDEX_PACKAGE", datatype="INT32", shape=[1])
        message.infer_response.raw_output_contents.append(index.to_bytes(4, "little"))
        return message.SerializeToString()

    async def work(front: Front) -> None:
        _, job = await front.post({**CUBE, "num_seeds": 2})
        refused, said = await front.post(CUBE)
        assert refused.status == 503 and said["error"].startswith("2 requests of this client are running")
        go.set()
        await front.until_ended(job)
        for index in (0, 1):
            got = await front.http.get(f"{job['result_url']}?index={index}")
            assert await got.read() == b"%d" % index
        missing, said = await front.get(job["result_url"] + "?index=2")
        assert missing.status == 404 and "no such file" in said["error"]

    go = asyncio.Event()
    drive(work, [go, result(1), result(0)])


@pytest.mark.parametrize("end", ["stopped", "finished", "unknown"])
def test_cancel_answers_one_of_three(end: str) -> None:
    async def work(front: Front) -> None:
        ended = answer(STATUS=status("ended", end_state="cancelled", error_type="CANCELLED", message="was cancelled"))
        front.upstream.scripts = [[step(1), front.upstream.a_stop, ended] if end == "stopped" else [RESULT]]
        _, job = await front.post()
        if end == "finished":
            await front.until_ended(job)
        else:
            while not front.upstream.requests:
                await asyncio.sleep(0.005)
        address = "/v1/splats/unknown" if end == "unknown" else job["status_url"]
        answered = await front.http.delete(address)
        expected = {"stopped": (202, "requested"), "finished": (200, "already_finished"), "unknown": (404, "not_found")}
        assert (answered.status, (await answered.json())["status"]) == expected[end]
        standing = await front.until_ended(job)
        if end == "stopped":
            assert standing["state"] == "cancelled" and standing["error"] == "was cancelled"
            assert (await front.get(job["result_url"]))[0].status == 410

    drive(work)


def test_a_failure_says_why() -> None:
    async def work(front: Front) -> None:
        _, job = await front.post()
        standing = await front.until_ended(job)
        assert standing["state"] == "failed" and standing["error_type"] == "INVALID_ARG"
        assert "must contain a word" in standing["error"]

    drive(work, [failure("in ensemble 'diffsplat', INVALID_ARG: prompt = '!': must contain a word")])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "a cube", "steps": 0}, "steps = 0: must be in 1 .. 200"),
        ({"prompt": "a cube", "colour": "red"}, "'colour': no option"),
        ({"prompt": "a cube", "image": "not base64!"}, "must be files in base64"),
        ({"prompt": "a cube", "image": 7}, "must be files in base64"),
        ({"prompt": 7}, "prompt"),
        ([], "must be a JSON object"),
        ({}, "prompt"),
    ],
)
def test_bad_requests_are_refused(body: Any, says: str) -> None:
    async def work(front: Front) -> None:
        answered, error = await front.post(body)
        assert answered.status == 400 and error["error_type"] == "INVALID_ARG" and says in error["error"]

    drive(work)


def test_bodies_that_are_none_are_refused() -> None:
    async def work(front: Front) -> None:
        for data, kind, code in (
            (b"{" * 50_000, "application/json", 400),
            (b"[" * 50_000, "application/json", 400),
            (b"\xff\xfe", "application/json", 400),
            (b"{}", "text/plain", 400),
            (b"x" * 100_001, "application/json", 413),
        ):
            answered = await front.http.post("/v1/splats", data=data, headers={"Content-Type": kind})
            assert answered.status == code, (data[:10], kind)
        assert (await front.http.get("/v1/splats")).status == 405
        assert (await front.http.get("/v2/models/diffsplat")).status == 404
        assert (await front.http.post("/v1/splats", json=CUBE, headers={"Idempotency-Key": "ü" * 200})).status == 400

    drive(work)


def test_bytes_that_are_no_http_leave_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What fails in the front itself does."""

    async def answer_to(port: int, sent: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        received = await reader.read()
        writer.close()
        return received

    async def work(front: Front) -> None:
        runner = front.front.runner()
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        (port,) = [port for _, port in runner.addresses]
        for garbage in (
            b"\x16\x03\x01garbage\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nE\xfb=\r\n\r\n",
        ):
            assert b" 400 " in (await answer_to(port, garbage)).split(b"\r\n")[0], garbage
        assert not caplog.records
        front.dispatcher.draining = cast(bool, BrokenTruth())
        health = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert b" 500 " in (await answer_to(port, health)).split(b"\r\n")[0]
        assert "neither true nor false" in caplog.text
        await runner.cleanup()

    drive(work)


class BrokenTruth:
    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")


def test_too_many_requests_are_asked_to_come_back() -> None:
    async def work(front: Front) -> None:
        await front.post()
        await front.post()
        answered, error = await front.post()
        assert answered.status == 503 and answered.headers["Retry-After"] and error["error_type"] == "UNAVAILABLE"

    drive(work, [asyncio.Event()], [asyncio.Event()])


def test_tokens_and_health(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"shop {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")

    async def work(front: Front) -> None:
        answered, _ = await front.post()
        assert answered.status == 401 and answered.headers["WWW-Authenticate"] == "Bearer"
        answered, job = await front.post(Authorization=f"Bearer {TOKEN}")
        assert answered.status == 202 and (await front.http.get(job["status_url"])).status == 401
        assert (await front.http.get("/healthz")).status == 200
        front.upstream.run = None
        assert (await front.http.get("/healthz")).status == 503

    drive(work, [RESULT], doorman=Doorman(TokenFile(tokens)))


def test_ids_of_others_are_not_found() -> None:
    async def work(front: Front) -> None:
        recording = front.store.begin(("token:somebody", "theirs"), b"")
        recording.end("finished")
        answered, error = await front.get("/v1/splats/theirs")
        assert answered.status == 404 and error["error_type"] == "NOT_FOUND"

    drive(work)
