"""A short form of `python -m benchmarks.soak`: mixed requests while processes are killed; all right, nothing left."""

from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.edge_overhead import serve

pytestmark = pytest.mark.triton


def test_every_good_request_ends_right_and_nothing_is_left(
    pico_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(pico_repository) as service:
        tried = soak.Soak(service.edge_url)
        figures = soak.run(tried, service.pid, requests=40, clients=6, disturb_every=20)
        assert not tried.wrong
        monkeypatch.setattr(soak, "GOOD", soak.GOOD[::-1])  # the check of the check: other requests, other objects
        tried.send("good", 0)
    assert len(tried.wrong) == 1 and tried.wrong[0].startswith("good 0: ")
    assert len(figures["disturbances"]) == 2 and figures["disturbances"][1] == "tritonserver killed"
    assert not figures["left"]
    assert set(figures["requests"]) == set(soak.KINDS) and sum(figures["requests"].values()) == 40 + len(soak.GOOD)
