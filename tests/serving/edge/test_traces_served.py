"""Traces of a real tritonserver with pico behind the edge: the application's span, the request's, its stages'."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffsplat_client import Client
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id

from benchmarks.quality.truth import EVALUATION_SEED
from diffsplat.bundle import Bundle
from diffsplat.serving.edge.server import EdgeSettings
from diffsplat.serving.edge.service import Service
from diffsplat.serving.edge.stage_spans import FOLLOWS
from tests.reconstruction_views import sample_request, unseen_samples
from tests.serving.edge.collector import Collector, collecting, facts
from tests.serving.processes import TIMEOUT_S

pytestmark = pytest.mark.triton

TRACER = TracerProvider(shutdown_on_exit=False).get_tracer("an application")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "requests.jsonl"


@pytest.fixture(scope="module")
def client(pico_repository: Path, collector: Collector, log: Path) -> Iterator[Client]:
    settings = EdgeSettings(traces=collector.url, request_log=log)
    with (
        Service(pico_repository, settings=settings) as service,
        Client(service.grpc_url, timeout_s=TIMEOUT_S) as client,
    ):
        yield client


def stages_within(collector: Collector, root: Any) -> list[Any]:
    """Those of a request; none lies outside its span."""
    stages = collector.below(root)
    assert root.start_time_unix_nano <= min(span.start_time_unix_nano for span in stages)
    assert max(span.end_time_unix_nano for span in stages) <= root.end_time_unix_nano
    return stages


def test_every_stage_of_a_generation_is_drawn(
    client: Client, collector: Collector, log: Path, four_views: np.ndarray
) -> None:
    with TRACER.start_as_current_span("a page") as page:
        made = client.generate("a red cube", steps=3, formats=("ply",), frame_poses=four_views, frame_size=64)
    root, context = collector.root_of(made.request_id), page.get_span_context()
    assert root.parent_span_id.hex() == format_span_id(context.span_id)
    assert root.trace_id.hex() == format_trace_id(context.trace_id)
    assert facts(root)["diffsplat.steps"] == 3 and facts(root)["diffsplat.end_state"] == "finished"
    spans = {span.name: span for span in stages_within(collector, root)}
    assert spans.keys() == FOLLOWS.keys() - {"reconstruct"}
    (line,) = [line for line in map(json.loads, log.read_text().splitlines()) if line["request"] == made.request_id]
    durations_ms = {name: (s.end_time_unix_nano - s.start_time_unix_nano) / 1e6 for name, s in spans.items()}
    assert durations_ms.keys() == line["stages_ms"].keys() and line["trace_id"] == root.trace_id.hex()
    assert all(durations_ms[name] <= ms for name, ms in line["stages_ms"].items()), "a busy machine may cut some off"
    assert durations_ms["encode"] == line["stages_ms"]["encode"]
    decoded = spans["decode"].end_time_unix_nano
    assert spans["queued_rasterize"].start_time_unix_nano == spans["queued_package"].start_time_unix_nano == decoded


def test_the_results_of_one_request_have_their_own_stages(client: Client, collector: Collector) -> None:
    made, _ = client.generate_all("a red cube", steps=2, num_seeds=2)
    root = collector.root_of(made.request_id)
    found = sorted((span.name, facts(span)["diffsplat.index"]) for span in stages_within(collector, root))
    each = FOLLOWS.keys() - {"reconstruct", "encode", "queued_rasterize", "rasterize"}
    without_frames = [entry for entry in found if "rasterize" not in entry[0]]
    assert without_frames == sorted([("encode", 0), *((name, index) for name in each for index in (0, 1))])
    assert facts(root)["diffsplat.results"] == 2


def test_a_reconstruction_has_its_own_stage(client: Client, collector: Collector, pico_bundle: Bundle) -> None:
    (sample,) = unseen_samples(pico_bundle.spec.geometry, EVALUATION_SEED, 1)
    made = client.reconstruct(sample_request(sample, formats=("raw",)))
    root = collector.root_of(made.request_id)
    assert root.name == "diffsplat_reconstruct"
    names = {span.name for span in stages_within(collector, root)}
    assert {"reconstruct", "queued_package", "package"} <= names <= FOLLOWS.keys() - {"encode", "denoise"}
