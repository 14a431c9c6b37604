"""Random requests, right and wrong in every way, are taken or refused by name; benchmarks/fuzz sends more of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from diffsplat_client.client import Client
from diffsplat_client.request import GenerationRequest

from benchmarks.fuzz import inputs
from benchmarks.fuzz.checks import CHECKS, REFUSED, TAKEN, Check, stages_of
from benchmarks.fuzz.explore import explore
from benchmarks.fuzz.served import ServedFuzz, served
from diffsplat.serving.edge.service import Service
from tests.serving.processes import TIMEOUT_S, wait_for

if TYPE_CHECKING:
    from diffsplat.pipeline import Pipeline

GOOD = GenerationRequest("a red cube", seed=1, steps=4)


@pytest.mark.parametrize("name", CHECKS)
def test_in_one_process(name: str) -> None:
    outcomes, failure = explore(CHECKS[name], 280)
    assert not failure
    assert outcomes[TAKEN] and outcomes[REFUSED], "both are tried"


def test_the_first_stages_refuse_by_name_what_they_do_not_take(pipeline: "Pipeline") -> None:
    outcomes, failure = explore(Check(inputs.messages(), stages_of(pipeline)), 200)
    assert not failure
    assert outcomes[TAKEN] and outcomes[REFUSED], "both are tried"


def test_a_failure_is_reported_with_its_smallest_input() -> None:
    def check(data: bytes) -> str:
        assert b"x" not in data, "an x"
        return TAKEN

    outcomes, failure = explore(Check(inputs.garbage, check), 400)
    assert outcomes["failed"] and "an x" in failure and "input: b'x'" in failure


@pytest.fixture(scope="module")
def service(pico_repository: Path) -> Iterator[Service]:
    with Service(pico_repository, http_port=0) as service:
        yield service


@pytest.fixture
def live(service: Service) -> Iterator[ServedFuzz]:
    """Checks against it; afterwards it is idle, was not restarted, and gives the object that it gave before."""
    assert service.http_url is not None
    with Client(service.grpc_url, timeout_s=TIMEOUT_S) as client:
        before = client.generate(GOOD).cloud.to_array()
        with served(service.grpc_url, service.http_url) as live:
            yield live
        wait_for(lambda: not service.edge.busy and service.supervisor.server.requests_in_flight() == 0)
        assert service.supervisor.restarts == 0
        assert np.array_equal(client.generate(GOOD).cloud.to_array(), before)


@pytest.mark.triton
def test_over_connections(live: ServedFuzz) -> None:
    for check, count in (
        (Check(inputs.messages(), live.message), 160),
        (Check(inputs.damaged(), live.message), 80),
        (Check(inputs.json_bodies(), live.http_body), 80),
        (Check(inputs.garbage, live.garbage), 80),
    ):
        outcomes, failure = explore(check, count)
        assert not failure
        assert sum(outcomes.values()) == count
