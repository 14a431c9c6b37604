"""One server for all tests of this folder, and the pipeline it must equal."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from diffsplat_client.client import Client
from diffsplat_client.grpc_transport import GrpcTransport

from diffsplat.serving.engine.engine import Engine
from diffsplat.serving.server.server import TritonServer
from tests.serving import obedient
from tests.serving.processes import TIMEOUT_S

if TYPE_CHECKING:
    from diffsplat.pipeline import Pipeline

LIGHT_CONFIG = """
name: "diffsplat" backend: "python"
input [
  { name: "ETA", data_type: TYPE_FP32, dims: [ 1 ], optional: true },
  { name: "SEED", data_type: TYPE_INT64, dims: [ 1 ], optional: true }
]
output [ { name: "Y", data_type: TYPE_FP32, dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU, count: 1 } ]
"""
LIGHT_MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""
FOUR_VIEWS = np.array([[10, azimuth, 1.4, 1] for azimuth in (0, 90, 180, 270)], np.float32)


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """Put engines in: they are closed at the end, and their threads must have ended."""
    started: list[Engine] = []
    yield started
    for engine in started:
        engine.close()
        assert not engine._thread.is_alive()


@pytest.fixture(scope="session")
def pipeline(pico_repository: Path) -> "Pipeline":
    """The exported graphs in this process."""
    from diffsplat.pipeline import Pipeline

    return Pipeline.load(pico_repository, threads=1)


@pytest.fixture(scope="session")
def server(pico_repository: Path) -> Iterator[TritonServer]:
    """A real tritonserver over the same repository. Tests that harm a server start their own."""
    with TritonServer(pico_repository) as server:
        yield server
        assert server.running, server.why_it_failed()


@pytest.fixture
def light_repository(tmp_path: Path) -> Path:
    """A repository whose only model loads at once: enough for a launcher."""
    folder = tmp_path / "repository" / "diffsplat"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(LIGHT_CONFIG)
    (folder / "1" / "model.py").write_text(LIGHT_MODEL)
    return folder.parent


@pytest.fixture
def obedient_repository(light_repository: Path) -> Path:
    """A repository whose only model does what a request asks for."""
    (light_repository / "diffsplat" / "1" / "model.py").write_text(obedient.MODEL)
    config = light_repository / "diffsplat" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))  # one is free while the other works
    return light_repository


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    """A client of it."""
    with Client(server.grpc_url, timeout_s=TIMEOUT_S) as client:
        yield client


@pytest.fixture
def wire(server: TritonServer) -> Iterator[GrpcTransport]:
    """The wire below the client, which lets anything through."""
    transport = GrpcTransport(server.grpc_url)
    yield transport
    transport.close()


@pytest.fixture
def four_views() -> np.ndarray:
    """Poses of the generated views."""
    return FOUR_VIEWS.copy()
