"""`diffsplat serve`: how it ends, with a request in flight, by every signal."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from diffsplat_client.grpc_transport import GrpcTransport

from diffsplat.serving.commands import _memory
from diffsplat.serving.server.metrics import read_metrics, requests_in_flight
from diffsplat.serving.server.ports import choose_ports
from tests.serving.obedient import WAIT, ask
from tests.serving.processes import TIMEOUT_S, child_of, group_members, wait_for


class Command:
    """A running `diffsplat serve` over the obedient model, and a request in flight."""

    def __init__(self, repository: Path, state: Path, *options: str) -> None:
        self.release = repository / "diffsplat" / "1" / "release"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diffsplat_client.cli", "serve", str(repository)]
            + ["--grpc-port", "0", "--metrics-port", "0", "--drain-timeout", str(TIMEOUT_S), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "XDG_STATE_HOME": str(state)},
        )
        self.said = ""
        self.read_until("Ctrl-C stops the server")
        addresses = re.search(r"gRPC (127.0.0.1:\d+)   metrics (\S+)", self.said)
        assert addresses, self.said
        self.grpc_url, metrics_url = addresses.groups()
        self.server_pid = child_of(child_of(self.process.pid))
        self.answers: list[object] = []
        self.asked = ask(self.grpc_url, WAIT, self.answers)
        wait_for(lambda: requests_in_flight(read_metrics(metrics_url)) == 1)

    def read_until(self, words: str) -> None:
        assert self.process.stdout is not None
        while words not in self.said:
            line = self.process.stdout.readline()
            assert line, f"ended early: {self.said}"
            self.said += line

    def finish(self) -> int:
        """Wait for the end; its exit code. Nothing may be left, and the port is free for the next server."""
        output, _ = self.process.communicate(timeout=TIMEOUT_S)
        self.said += output
        self.asked.join()
        wait_for(lambda: not group_members(self.server_pid))
        port = int(self.grpc_url.rpartition(":")[2])
        assert choose_ports({"gRPC": port}) == {"gRPC": port}
        return self.process.returncode


@pytest.fixture
def command(obedient_repository: Path, tmp_path: Path) -> Iterator[Command]:
    command = Command(obedient_repository, tmp_path / "state")
    try:
        yield command
    finally:
        command.release.touch()
        command.process.kill()
        command.process.communicate()
        command.asked.join()


@pytest.mark.triton
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_lets_requests_finish_and_refuses_new_ones(
    command: Command, number: signal.Signals, tmp_path: Path
) -> None:
    command.process.send_signal(number)
    command.read_until("finishing the requests in flight")
    refused: list[object] = []
    ask(command.grpc_url, WAIT, refused).join()
    assert refused == ["UNAVAILABLE"] and not command.answers
    command.release.touch()
    assert command.finish() == 0
    assert command.answers == [{}] and command.said.endswith("at once\nstopped\n")
    (log,) = (tmp_path / "state" / "diffsplat" / "repository-8001").parent.glob("repository-*/server-*.log")
    assert "Started GRPCInferenceService" in log.read_text()


@pytest.mark.triton
def test_without_the_edge_clients_reach_triton_itself(obedient_repository: Path, tmp_path: Path) -> None:
    command = Command(obedient_repository, tmp_path / "state", "--no-edge")
    try:
        assert "edge's metrics" not in command.said
        with contextlib.closing(GrpcTransport(command.grpc_url)) as wire:
            assert not wire.keeps_requests(TIMEOUT_S), "there is nobody who would"
        command.process.send_signal(signal.SIGTERM)
        command.read_until("finishing the requests in flight")
        command.release.touch()
        assert command.finish() == 0 and command.answers == [{}]
    finally:
        command.process.kill()
        command.process.communicate()


@pytest.mark.triton
def test_a_second_ctrl_c_does_not_wait(command: Command) -> None:
    command.process.send_signal(signal.SIGINT)
    command.read_until("Ctrl-C again stops at once")
    command.process.send_signal(signal.SIGINT)
    command.read_until("requests were still in flight")
    command.release.touch()  # the model's process ends with its call
    assert command.finish() == 0


@pytest.mark.triton
def test_a_killed_launcher_takes_everything_along_at_once(command: Command) -> None:
    command.process.kill()
    assert command.finish() == -signal.SIGKILL
    assert command.answers == ["UNAVAILABLE"], "a client must not wait for its timeout"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--traces", "localhost:4317"], "error: --traces localhost:4317: must be http://HOST:PORT"),
        (
            ["--traces", "http://localhost:4317", "--no-edge"],
            "error: --traces: for the edge, which --no-edge leaves out",
        ),
        (["--tokens", "tokens", "--no-edge"], "error: --tokens: for the edge, which --no-edge leaves out"),
        (["--log-prompts", "--no-edge"], "error: --log-prompts: for the edge, which --no-edge leaves out"),
    ],
)
def test_options_of_the_edge_that_cannot_be_are_refused(
    light_repository: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    command = [sys.executable, "-m", "diffsplat_client.cli", "serve", str(light_repository), "--grpc-port", "0"]
    done = subprocess.run(
        [*command, "--metrics-port", "0", *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )
    assert done.returncode == 1 and done.stderr.startswith(says), done.stderr


@pytest.mark.parametrize(("text", "size"), [("800M", 800 * 2**20), ("1.5g", 3 * 2**29), ("4096", 4096)])
def test_sizes_of_memory(text: str, size: int) -> None:
    assert _memory(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1G", "0", "nan", "inf", "G"])
def test_impossible_sizes_of_memory(text: str) -> None:
    with pytest.raises(ValueError):
        _memory(text)
