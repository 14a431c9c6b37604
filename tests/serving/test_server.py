"""The launcher: what it refuses, what it reports, and that nothing outlives it."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from diffsplat_client.client import Client
from diffsplat_client.errors import ServerUnavailableError
from diffsplat_client.request import GenerationRequest

from diffsplat.serving import prerequisites
from diffsplat.serving.server import ServerError, TritonServer

TIMEOUT_S = 60.0

LIGHT_CONFIG = """
name: "diffsplat" backend: "python"
input [ { name: "X", data_type: TYPE_FP32, dims: [ 1 ] } ] output [ { name: "Y", data_type: TYPE_FP32, dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU, count: 1 } ]
"""


@pytest.fixture
def light_repository(tmp_path: Path) -> Path:
    """A repository whose only model loads at once: enough for a launcher."""
    folder = tmp_path / "repository" / "diffsplat"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(LIGHT_CONFIG)
    (folder / "1" / "model.py").write_text(
        "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
    )
    return folder.parent


def group_members(leader: int) -> list[int]:
    """Processes of a process group that still run."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                members.append(int(path.parent.name))
    return members


def wait_until_gone(leader: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while left := group_members(leader):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)


def regions(prefix: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{prefix}*"))


class TestRefusals:
    """Before anything is started."""

    def test_a_folder_that_is_no_repository(self, tmp_path: Path) -> None:
        with pytest.raises(ServerError, match=f"{tmp_path}: not an exported repository"):
            TritonServer(tmp_path).start()

    @pytest.mark.parametrize("name", ["grpc_port", "http_port", "metrics_port"])
    def test_a_port_in_use_is_named(self, light_repository: Path, name: str) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ServerError, match=f"port {port} for .* on 127.0.0.1 is in use") as caught:
                TritonServer(light_repository, **{name: port}).start()
        assert "\n" not in str(caught.value)

    def test_an_impossible_port(self, light_repository: Path) -> None:
        with pytest.raises(ServerError, match="port 70000 for gRPC .* cannot be used"):
            TritonServer(light_repository, grpc_port=70000).start()

    def test_a_missing_libpython(self, light_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prerequisites, "find_libpython", lambda: None)
        version = "{}.{}".format(*sys.version_info[:2])
        with pytest.raises(ServerError, match=f"install its package .apt-get install libpython{version}"):
            TritonServer(light_repository).start()


class TestPrerequisites:
    """The check that runs before anything is installed."""

    def test_this_machine_will_do(self) -> None:
        path = Path(prerequisites.__file__)
        run = subprocess.run([sys.executable, "-I", "-S", str(path)], capture_output=True, text=True, timeout=TIMEOUT_S)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (("platform.machine", lambda: "aarch64"), "needs Linux on x86-64"),
            (("sys.version_info", (3, 10, 1)), r"is Python 3\.10, 3\.11 or 3\.12 is needed"),
            (("importlib.util.find_spec", lambda name: None), r"apt-get install python3\.\d+-venv"),
            (("find_libpython", lambda: None), r"apt-get install libpython3\.\d+"),
        ],
        ids=["machine", "version", "venv", "libpython"],
    )
    def test_what_is_missing_comes_with_its_fix(
        self, monkeypatch: pytest.MonkeyPatch, capsys, spoil, says: str
    ) -> None:
        name, value = spoil
        monkeypatch.setattr(f"diffsplat.serving.prerequisites.{name}", value)
        assert prerequisites.main() == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("prerequisite missing: ")
        assert re.search(says, lines[0]), lines[0]


@pytest.mark.triton
class TestLife:
    """A real server with one small model."""

    def test_it_starts_reports_answers_and_leaves_nothing(self, light_repository: Path) -> None:
        told: list[str] = []
        with TritonServer(light_repository, on_progress=told.append) as running:
            pid, prefix, folder = running.pid, running._shm_prefix, running.log_path.parent
            assert told == ["loading diffsplat (version 1)", "diffsplat is ready"]
            with urllib.request.urlopen(running.metrics_url, timeout=TIMEOUT_S) as reply:
                assert b"nv_" in reply.read()
            assert len(group_members(pid)) >= 2, "tritonserver and its model"
            assert regions(prefix)
        assert not running.running and not group_members(pid) and not regions(prefix) and not folder.exists()
        running.stop()  # twice does no harm

    def test_what_a_killed_launcher_left_is_removed_by_the_next_one(
        self, light_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        gone = subprocess.Popen(["true"])
        gone.wait()
        left, kept = (tmp_path / f"diffsplat-server-{pid}-abc" for pid in (gone.pid, os.getpid()))
        for folder in (left, kept):
            folder.mkdir()
            (folder / "server.log").touch()
        with TritonServer(light_repository):
            assert kept.exists() and not left.exists()

    def test_a_killed_server_is_noticed_and_cleaned_up(self, light_repository: Path) -> None:
        with TritonServer(light_repository) as running:
            pid, prefix = running.pid, running._shm_prefix
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + TIMEOUT_S
            while running.running:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        while members := group_members(pid):  # they were told to end; a busy machine takes its time
            assert time.monotonic() < deadline, members
            time.sleep(0.05)
        assert not regions(prefix)

    def test_a_model_that_does_not_load_is_the_servers_error(self, light_repository: Path) -> None:
        model = light_repository / "diffsplat" / "1" / "model.py"
        fail = "def initialize(self, args):\n        raise ValueError('decoder.onnx: missing')"
        model.write_text(f"class TritonPythonModel:\n    {fail}\n")
        with pytest.raises(
            ServerError, match=r"code 1 while starting:\nmodel diffsplat: ValueError: decoder.onnx: missing$"
        ):
            TritonServer(light_repository).start()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
    def test_nothing_outlives_the_command(self, light_repository: Path, number: signal.Signals) -> None:
        command = [sys.executable, "-m", "diffsplat_client.cli", "serve", str(light_repository)]
        command += ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        lines = []
        try:
            while not lines or "Ctrl-C" not in lines[-1]:
                lines.append(process.stdout.readline())
                assert lines[-1], f"ended early: {lines}"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            (leader,) = [int(child) for child in children]
            assert any("gRPC 127.0.0.1:" in line for line in lines)
            process.send_signal(number)
            code = process.wait(TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
        rest = process.stdout.read()
        process.stdout.close()
        wait_until_gone(leader)
        if number != signal.SIGKILL:
            assert code == 0 and rest == "stopped\n"


@pytest.mark.triton
class TestFaults:
    """What goes wrong with an exported repository."""

    def test_a_missing_graph_is_named_when_the_model_loads(self, pico_repository: Path, tmp_path: Path) -> None:
        """Only `decode` and the ensemble are there: the others need not load for this."""
        for model in ("decode", "diffsplat"):
            shutil.copytree(pico_repository / model, tmp_path / model)
        (graph,) = (path for path in (tmp_path / "decode" / "1").iterdir() if path.stem in ("decoder", "gsvae"))
        graph.unlink()
        with pytest.raises(ServerError, match=f"model decode: .*{graph}: missing"):
            TritonServer(tmp_path).start()

    def test_a_server_killed_during_a_request_is_the_clients_typed_error(self, pico_repository: Path) -> None:
        with TritonServer(pico_repository) as running, Client(running.grpc_url, timeout_s=TIMEOUT_S) as client:
            with client.stream(GenerationRequest("a red cube", steps=200)) as events:
                next(events)
                os.kill(running.pid, signal.SIGKILL)
                with pytest.raises(ServerUnavailableError) as caught:
                    list(events)
            assert running.grpc_url in str(caught.value) and "\n" not in str(caught.value)
            with pytest.raises(ServerUnavailableError):
                client.generate("a red cube")
