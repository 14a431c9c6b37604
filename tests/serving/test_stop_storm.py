"""Requests that are stopped at random moments leave a server that is alive, idle and right."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.stop_storm import chatty_repository, check_after, splats_of, stop_commands, stop_streams
from diffsplat.serving.server import TritonServer

pytestmark = pytest.mark.triton


@pytest.fixture
def own_server(pico_repository: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """Tells progress after every step: there are always messages in the later stages."""
    with TritonServer(chatty_repository(pico_repository, tmp_path)) as server:
        yield server


def test_a_storm_of_stops(own_server: TritonServer, tmp_path: Path) -> None:
    """With error responses in the place of a last STATUS, Triton 2.51 dies within 40 stops of running requests."""
    expected = splats_of(own_server.grpc_url)
    stop_streams(own_server.grpc_url, 300)
    stop_streams(own_server.grpc_url, 200, first_message=True)
    check_after(own_server, expected)
    stop_commands(own_server.grpc_url, 2, tmp_path / "out")
    check_after(own_server, expected)
    assert "Traceback" not in own_server.log_path.read_text()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir()), "a stopped command left files"
