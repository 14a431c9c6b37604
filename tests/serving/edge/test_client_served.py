"""The client's handles on a real tritonserver with pico behind the edge."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diffsplat_client import Client, InvalidRequestError, RequestNotFoundError, ServerUnavailableError
from diffsplat_client.errors import RequestCancelledError

from diffsplat.serving.edge.service import Service
from tests.serving.processes import TIMEOUT_S, wait_for

pytestmark = pytest.mark.triton

LONG_STEPS = 200


@pytest.fixture(scope="module")
def service(pico_repository: Path) -> Iterator[Service]:
    with Service(pico_repository) as service:
        yield service


def client_of(service: Service) -> Client:
    return Client(service.grpc_url, timeout_s=TIMEOUT_S)


def test_a_request_outlives_its_client(service: Service) -> None:
    options = {"seed": 3, "steps": 8, "formats": ("ply", "spz")}
    with client_of(service) as client:
        handle = client.submit("a red cube", request_id="outlives", **options)
        assert client.submit("a red cube", request_id="outlives", **options).id == handle.id
        assert len(service.edge.jobs) <= 1, "never computed twice"
    with client_of(service) as client:
        expected = client.generate("a red cube", **options)
        again = client.attach("outlives")
        result = again.result()
        assert result.assets == expected.assets and result.seed == 3
        status = again.status()
        assert status is not None and status.phase == "finished"
        assert np.array_equal(again.result().cloud.to_array(), result.cloud.to_array())
        with pytest.raises(InvalidRequestError, match="another request has this id"):
            client.submit("a blue cube", request_id="outlives", **options)
        with pytest.raises(RequestNotFoundError):
            client.attach("nobody's")


def test_a_submitted_request_can_be_cancelled(service: Service) -> None:
    with client_of(service) as client:
        handle = client.submit("a red cube", steps=LONG_STEPS)
        status = handle.status()
        assert status is not None and status.phase in ("queued", "denoising")
        with handle.events() as events:
            next(events)
        (job,) = service.edge.jobs
        handle.cancel()
        wait_for(lambda: job.end_state != "running")
        assert job.end_state == "cancelled"
        with pytest.raises((RequestCancelledError, RequestNotFoundError)):
            handle.result()


def test_triton_without_the_edge_is_named(service: Service) -> None:
    with Client(service.supervisor.server.grpc_url) as client:
        with pytest.raises(ServerUnavailableError, match="Triton without an edge"):
            client.submit("a red cube")
