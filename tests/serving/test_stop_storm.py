"""Requests that are stopped at random moments leave a server that is alive, idle and right."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from diffsplat_client import Client, InvalidRequestError, ServerError, ServerUnavailableError, four_views

from benchmarks.stop_storm import (
    chatty_repository,
    check_after,
    splats_of,
    stop_commands,
    stop_streams,
    wait_until_idle,
)
from diffsplat.serving.server.server import TritonServer
from tests.serving.processes import TIMEOUT_S

pytestmark = pytest.mark.triton
FAILING_RASTERIZE = """
from pathlib import Path

from diffsplat.serving.stage_models.models import RasterizeModel

class TritonPythonModel(RasterizeModel):
    def load(self, folder):
        super().load(Path({original!r}))  # the record there does not know this file

    def work(self, array, envelope, *also):
        if envelope.request.frame_size == 17:
            raise OSError("no space left")
        return super().work(array, envelope, *also)
"""


@pytest.fixture(scope="module")
def own_server(pico_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Tells progress after every step: there are always messages in the later stages."""
    repository = chatty_repository(pico_repository, tmp_path_factory.mktemp("chatty"), max_answer_mb="20")
    model = repository / "rasterize" / "1" / "model.py"
    model.unlink()  # a link
    model.write_text(FAILING_RASTERIZE.format(original=str(pico_repository / "rasterize" / "1")))
    with TritonServer(repository) as server:
        yield server


def test_a_storm_of_stops_and_failures(own_server: TritonServer, tmp_path: Path) -> None:
    """With error responses instead, Triton 2.51 dies within 40 stops of running requests, and within 10 failures."""
    expected = splats_of(own_server.grpc_url)
    stop_streams(own_server.grpc_url, 300)
    stop_streams(own_server.grpc_url, 200, first_message=True)
    check_after(own_server, expected)
    fail_in_a_later_stage(own_server.grpc_url, 40)
    assert own_server.log_path.read_text().count("OSError: no space left") == 40
    check_after(own_server, expected)
    stop_commands(own_server.grpc_url, 2, tmp_path / "out")
    check_after(own_server, expected)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir()), "a stopped command left files"


def test_answers_in_flight_are_limited(own_server: TritonServer) -> None:
    """By their bytes, until the last stage has made them."""
    large = {"steps": 200, "frame_poses": four_views(), "frame_size": 1000}  # 12 MB of frames
    with Client(own_server.grpc_url, timeout_s=TIMEOUT_S) as client:
        with client.stream("a red cube", **large) as running:
            next(running)
            with pytest.raises(ServerUnavailableError, match=r"answer of 12.2 MB does not fit .* at most 20.0 MB"):
                client.generate("a red cube", **large)
            assert len(client.generate("a red cube", steps=1).cloud) > 0
            with pytest.raises(InvalidRequestError, match=r"would have 48.2 MB, this server makes at most 20.0 MB"):
                client.generate("a red cube", **{**large, "frame_size": 2000})
        wait_until_idle(own_server)
        for _ in range(3):  # shares come back from stopped and from finished requests
            assert client.generate("a red cube", **{**large, "steps": 1}).frames is not None


def fail_in_a_later_stage(url: str, count: int) -> None:
    with Client(url, timeout_s=TIMEOUT_S) as client, ThreadPoolExecutor(4) as callers:

        def fail(seed: int) -> None:
            with pytest.raises(ServerError, match="rasterize failed; the server's log says why"):
                client.generate("a red cube", seed=seed, steps=3, frame_poses=four_views(), frame_size=17)

        list(callers.map(fail, range(count)))
