"""The edge's own page of metrics."""

import asyncio
import re

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from diffsplat.serving.edge.jobs import Job
from diffsplat.serving.edge.metrics import EdgeMetrics, EdgeState
from diffsplat.serving.edge.server import Edge
from diffsplat.serving.server.metrics import read_metrics
from tests.serving.edge.scripted import Away, ScriptedUpstream, admitted, answer, request, status
from tests.serving.processes import wait_for


def values(page: str) -> dict[str, float]:
    """Name and labels -> value."""
    return {name: float(value) for name, value in re.findall(r"^(diffsplat_\S+(?:\{.*\})?) (\S+)$", page, re.M)}


def test_the_page_follows_a_request_from_arrival_to_end() -> None:
    with Edge(Away(), "127.0.0.1:1", metrics_port=0) as edge:
        assert edge.metrics_url is not None
        url = edge.metrics_url
        before = values(read_metrics(url))
        assert {name: before[f"diffsplat_edge_{name}"] for name in EdgeState._fields} == dict.fromkeys(
            EdgeState._fields, 0.0
        )
        with grpc.insecure_channel(edge.grpc_url) as channel:
            stream = GRPCInferenceServiceStub(channel).ModelStreamInfer
            call = stream(iter([request("waits")]))
            wait_for(lambda: len(edge.jobs) == 1)
            during = values(read_metrics(url))
            assert during["diffsplat_edge_running"] == during["diffsplat_edge_clients"] == 1
            assert during["diffsplat_edge_ready"] == 0
            call.cancel()
            wait_for(lambda: not edge.jobs)
            list(stream(iter([request("bad", model="unknown")])))
        after = values(read_metrics(url))
    assert after["diffsplat_edge_running"] == 0
    cancelled = 'diffsplat_edge_request_seconds_count{end_state="cancelled",model="diffsplat"}'
    refused = 'diffsplat_edge_refused_total{error_type="INVALID_ARG"}'
    assert (before[cancelled], after[cancelled]) == (0, 1)
    assert (before[refused], after[refused]) == (0, 1)


def test_what_is_sent_again_and_answered_is_counted() -> None:
    finished = answer(STATUS=status("finished", 20), TIMINGS={"encode": 1.5, "denoise": 80.0}, ASSET=b"ply\n")

    async def run() -> Job:
        upstream = ScriptedUpstream(["dies"], [finished])
        job = Job(admitted(), upstream, upstream)
        running = asyncio.create_task(job.run())
        while upstream.run is not None:
            await asyncio.sleep(0)
        upstream.run = 1
        await running
        return job

    job, metrics = asyncio.run(run()), EdgeMetrics()
    assert job.stages.stages_ms == {"encode": 1.5, "denoise": 80.0}
    metrics.ended("host", job)
    labels = {"model": "diffsplat", "end_state": "finished"}
    assert metrics.registry.get_sample_value("diffsplat_edge_sent_again_total") == 1
    assert metrics.registry.get_sample_value("diffsplat_edge_request_seconds_count", labels) == 1


def test_probes_are_no_requests() -> None:
    probe = admitted(pb.ModelInferRequest(model_name="decode", id="probe"))
    metrics = EdgeMetrics()
    metrics.ended("host", Job(probe, ScriptedUpstream(), ScriptedUpstream()))
    pages = [sample for family in metrics.registry.collect() for sample in family.samples]
    assert {sample.value for sample in pages if sample.name.endswith("_count")} == {0}
