"""Traces of the edge, over real sockets: clients, a scripted Triton behind it, and an OTLP receiver."""

import json
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from diffsplat.serving.edge import span_sender
from diffsplat.serving.edge.server import Edge, EdgeSettings
from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.server.metrics import read_metrics
from tests.serving.edge.collector import Collector, collecting, events, facts
from tests.serving.edge.scripted import PATIENCE_S, Away, answer, failure, read, request, status
from tests.serving.processes import wait_for

STAGES_MS = {"encode": 0.031, "queued": 0.002, "denoise": 0.207}
LATER_MS = {"queued_decode": 0.001, "decode": 0.053, "queued_package": 0.001, "package": 0.013}
ANSWERS = [
    answer(STATUS=status("queued")),
    answer(STATUS=status("finished", 20), TIMINGS=STAGES_MS),
    answer(TIMINGS_DECODE={name: LATER_MS[name] for name in ("queued_decode", "decode")}),
    answer(TIMINGS_PACKAGE={name: LATER_MS[name] for name in ("queued_package", "package")}, GAUSSIANS=b"splats"),
]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
UNREACHABLE = "http://127.0.0.1:1"  # nobody listens on it


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Plays its next script for every request: answers, or "dies", after which another run of the server is there."""

    def __init__(self) -> None:
        self.run: int | None = 0
        self.scripts: list[list[bytes | str]] = []

    def run_of(self, model: str) -> int | None:
        return self.run

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:
        for message in self.scripts.pop(0) if self.scripts else ANSWERS:
            if isinstance(message, str):
                assert self.run is not None
                self.run += 1
                context.abort(grpc.StatusCode.UNAVAILABLE, message)
            else:
                yield read(message)


@pytest.fixture
def triton() -> Iterator[Triton]:
    servicer = Triton()
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        servicer.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield servicer
        server.stop(None).wait(PATIENCE_S)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")  # milliseconds between batches
    with collecting() as collector:
        yield collector


def ask(edge: Edge, *messages: pb.ModelInferRequest, **headers: str) -> list[str]:
    """Send requests on one stream; the error messages of its answers."""
    with grpc.insecure_channel(edge.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        sent = messages or (request(),)
        return [
            response.error_message
            for response in stub.ModelStreamInfer(iter(sent), metadata=tuple(headers.items()), timeout=PATIENCE_S)
            if response.error_message
        ]


def counted(edge: Edge) -> dict[str, int]:
    assert edge.metrics_url is not None
    name = 'diffsplat_edge_trace_spans_total{outcome="'
    lines = [line for line in read_metrics(edge.metrics_url).splitlines() if line.startswith(name)]
    return {line.removeprefix(name).partition('"')[0]: int(float(line.rpartition(" ")[2])) for line in lines}


def test_a_request_is_a_span_with_its_stages_below(triton: Triton, collector: Collector, tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with Edge(triton, triton.url, settings=EdgeSettings(traces=collector.url, request_log=log)) as edge:
        assert not ask(edge)
        root = collector.root_of("mine")
    (line,) = map(json.loads, log.read_text().splitlines())
    assert root.name == "diffsplat" and root.kind == Span.SPAN_KIND_SERVER and not root.parent_span_id
    assert root.status.code == Status.STATUS_CODE_UNSET and events(root) == ["sent", "first answer"]
    assert facts(root) == {
        "diffsplat.client": "ipv4:127.0.0.1",
        "diffsplat.model": "diffsplat",
        "diffsplat.request.id": "mine",
        "diffsplat.triton.id": line["id"],
        "diffsplat.runs": 1,
        "diffsplat.results": 1,
        "diffsplat.answer_bytes": line["answer_bytes"],
        "diffsplat.steps": 20,
        "diffsplat.end_state": "finished",
    }
    assert root.trace_id.hex() == line["trace_id"]
    seconds = (root.end_time_unix_nano - root.start_time_unix_nano) / 1e9
    assert seconds == pytest.approx(line["seconds"], abs=1e-4), "the log rounds it"
    assert all(root.start_time_unix_nano <= event.time_unix_nano <= root.end_time_unix_nano for event in root.events)
    stages = collector.below(root)
    assert {span.name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 for span in stages} == (
        line["stages_ms"]
    )
    assert line["stages_ms"] == STAGES_MS | LATER_MS and {span.trace_id for span in stages} == {root.trace_id}
    assert min(span.start_time_unix_nano for span in stages) >= root.start_time_unix_nano
    assert collector.resource["service.name"] == "diffsplat" and "red cube" not in str(collector.spans)


def test_the_trace_of_the_caller_goes_on(triton: Triton, collector: Collector) -> None:
    with Edge(triton, triton.url, settings=EdgeSettings(traces=collector.url)) as edge:
        ask(edge, request("joins"), traceparent=f"00-{TRACE}-{SPAN}-01", tracestate="shop=7")
        ask(edge, request("unrecorded"), traceparent=f"00-{TRACE}-{SPAN}-00")
        ask(edge, request("garbled"), traceparent="00-0-0-1")
        ask(edge, request("bad", model="unknown"), traceparent=f"00-{TRACE}-{SPAN}-01")
    joins, garbled, bad = (collector.root_of(request_id) for request_id in ("joins", "garbled", "bad"))
    for root in (joins, bad):
        assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, SPAN)
    assert joins.trace_state == "shop=7" and {span.trace_id for span in collector.below(joins)} == {joins.trace_id}
    assert garbled.trace_id.hex() != TRACE and not garbled.parent_span_id
    assert "unrecorded" not in str(collector.spans), "the caller has said so"
    roots = [span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER]
    assert len(roots) == 3 and len(collector.spans) == 3 + 2 * len(STAGES_MS | LATER_MS)


def test_the_http_front_takes_the_callers_trace(triton: Triton, collector: Collector) -> None:
    with Edge(triton, triton.url, http_port=0, settings=EdgeSettings(traces=collector.url)) as edge:
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": "over-http",
            "Traceparent": f"00-{TRACE}-{SPAN}-01",
        }
        body = json.dumps({"prompt": "a red cube"}).encode()
        posted = urllib.request.Request(f"{edge.http_url}/v1/splats", body, headers)
        urllib.request.urlopen(posted, timeout=PATIENCE_S).close()
        root = collector.root_of("over-http")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, SPAN)


def test_failures_are_errors_and_say_why(triton: Triton, collector: Collector) -> None:
    stopped = answer(STATUS=status("ended", end_state="cancelled", error_type="CANCELLED", message="stopped"))
    triton.scripts = [
        [failure("in ensemble 'diffsplat', INTERNAL: decode failed")],
        [failure("in ensemble 'diffsplat', INVALID_ARG: prompt = 'a secret cube': too odd")],
        [stopped],
    ]
    with Edge(triton, triton.url, settings=EdgeSettings(traces=collector.url)) as edge:
        for request_id in ("fails", "odd", "stopped"):
            ask(edge, request(request_id, PROMPT=b"a secret cube"))
        ask(edge, request("bad", model="a secret model"))
    found = [collector.root_of(request_id) for request_id in ("fails", "odd", "stopped", "bad")]
    told = [(root.status.code, facts(root)["diffsplat.end_state"], facts(root)["error.type"]) for root in found]
    assert told == [
        (Status.STATUS_CODE_ERROR, "failed", "INTERNAL"),
        (Status.STATUS_CODE_ERROR, "failed", "INVALID_ARG"),
        (Status.STATUS_CODE_UNSET, "cancelled", "CANCELLED"),
        (Status.STATUS_CODE_ERROR, "refused", "INVALID_ARG"),
    ]
    assert "decode failed" in found[0].status.message and found[3].name == "unknown model"
    assert "secret cube" not in str(collector.spans), "a message may quote the prompt"


def test_prompts_are_in_spans_when_they_are_logged(triton: Triton, collector: Collector) -> None:
    triton.scripts = [[failure("INVALID_ARG: prompt = 'a red cube': too odd")]]
    with Edge(triton, triton.url, settings=EdgeSettings(traces=collector.url, log_prompts=True)) as edge:
        ask(edge)
    root = collector.root_of("mine")
    assert facts(root)["diffsplat.prompt"] == "a red cube" and "too odd" in root.status.message


def test_what_is_sent_again_says_why(triton: Triton, collector: Collector) -> None:
    triton.scripts = [[ANSWERS[0], "dies"], ANSWERS]
    with Edge(triton, triton.url, settings=EdgeSettings(traces=collector.url)) as edge:
        assert not ask(edge)
        root = collector.root_of("mine")
    assert facts(root)["diffsplat.runs"] == 2 and events(root) == ["sent", "sent again", "first answer"]
    reason = {item.key: item.value.string_value for item in root.events[1].attributes}
    assert reason == {"diffsplat.reason": "the connection to it broke (UNAVAILABLE)"}
    assert {facts(span)["diffsplat.run"] for span in collector.below(root)} == {2}


def test_probes_have_no_traces(triton: Triton, collector: Collector) -> None:
    triton.scripts = [[answer()], ANSWERS]
    with Edge(triton, triton.url, settings=EdgeSettings(traces=collector.url)) as edge:
        ask(edge, pb.ModelInferRequest(model_name="decode", id="probe"))
        ask(edge)
    collector.root_of("mine")
    assert "probe" not in str(collector.spans)


def test_requests_do_without_a_collector(
    triton: Triton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(span_sender, "CLOSE_LIMIT_S", 0.0)
    log = tmp_path / "requests.jsonl"
    with Edge(triton, triton.url, settings=EdgeSettings(traces=UNREACHABLE, request_log=log)) as edge:
        assert not ask(edge)
    assert json.loads(log.read_text())["end_state"] == "finished"
    assert "the collector has not taken 8 spans in time" in caplog.text


def test_spans_that_find_no_room_are_lost_and_counted(
    triton: Triton, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole requests are: a trace with holes would tell a lie."""
    per_request = 1 + len(STAGES_MS | LATER_MS)
    monkeypatch.setattr(span_sender, "MAX_WAITING", per_request + 1)
    monkeypatch.setattr(span_sender, "MAX_BATCH", per_request)
    collector.open.clear()
    with Edge(triton, triton.url, metrics_port=0, settings=EdgeSettings(traces=collector.url)) as edge:
        assert counted(edge) == {"exported": 0, "lost": 0}
        ask(edge, request("first"))
        collector.wait_for(lambda: collector.calls > 0)
        ask(edge, request("second"))
        wait_for(lambda: counted(edge) == {"exported": 0, "lost": per_request})
        collector.open.set()
        wait_for(lambda: counted(edge) == {"exported": per_request, "lost": per_request})
        ask(edge, request("third"))
        collector.root_of("third")
    assert "second" not in str(collector.spans)


def test_trouble_with_the_collector_is_told_once(
    triton: Triton, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    with Edge(triton, triton.url, metrics_port=0, settings=EdgeSettings(traces=collector.url)) as edge:

        def trouble() -> int:
            """Have a batch refused; how many lines all have made so far."""
            before, collector.error = counted(edge)["lost"], grpc.StatusCode.PERMISSION_DENIED
            ask(edge, request("lost"))
            wait_for(lambda: counted(edge)["lost"] == before + 1 + len(STAGES_MS | LATER_MS))
            return sum("PERMISSION_DENIED" in record.getMessage() for record in caplog.records)

        assert [trouble(), trouble()] == [1, 1]
        collector.error = None
        ask(edge, request("again"))
        collector.root_of("again")
        wait_for(lambda: counted(edge)["exported"] == 1 + len(STAGES_MS | LATER_MS))
        assert trouble() == 2


@pytest.mark.parametrize(
    "url", ["localhost:4317", "http://localhost", "http://:4317", "http://localhost:x", "ftp://a:1"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ServerStartError, match=rf"--traces {url}: must be http://HOST:PORT or https://HOST:PORT"):
        Edge(Away(), "127.0.0.1:1", settings=EdgeSettings(traces=url)).start()


def test_without_its_packages_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "diffsplat.serving.edge.traces", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    with pytest.raises(
        ServerStartError, match=r"--traces: needs the module \S+; `pip install 'diffsplat-triton\[traces\]'`"
    ):
        Edge(Away(), "127.0.0.1:1", settings=EdgeSettings(traces=UNREACHABLE)).start()
