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
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from diffsplat_client import cli
from diffsplat_client.client import Client
from diffsplat_client.errors import ServerUnavailableError
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.request import GenerationRequest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from diffsplat.serving import prerequisites
from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.server.processes import find_stubs
from diffsplat.serving.server.server import TritonServer
from diffsplat.serving.server.workspace import Workspace, remove_leftovers
from tests.serving.processes import TIMEOUT_S, group_members, wait_for
from tests.serving.repositories import link_small_repository, use_one_process_per_stage


def left_files(prefix: str) -> list[Path]:
    return [path for root in ("/dev/shm", tempfile.gettempdir()) for path in Path(root).glob(f"{prefix}*")]


def workspace_of(server: TritonServer) -> Workspace:
    assert server._workspace is not None
    return server._workspace


def listening_ports(pid: int) -> set[str]:
    """Ports on which a process listens."""
    links = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(os.readlink(descriptor))
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    listening = [row for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]
    return {str(int(row[1].rpartition(":")[2], 16)) for row in listening}


def http_status(url: str, method: str) -> int:
    """The status of the answer to a request without a body."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, method=method), timeout=TIMEOUT_S) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


class TestRefusals:
    """Before anything is started."""

    def test_a_folder_that_is_no_repository(self, tmp_path: Path) -> None:
        with pytest.raises(ServerStartError, match=f"{tmp_path}: not an exported repository"):
            TritonServer(tmp_path).start()

    @pytest.mark.parametrize("name", ["grpc_port", "http_port", "metrics_port"])
    def test_a_port_in_use_is_named(self, light_repository: Path, name: str) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ServerStartError, match=f"port {port} for .* on 127.0.0.1 is in use") as caught:
                TritonServer(light_repository, **{name: port}).start()
        assert "\n" not in str(caught.value)

    def test_an_impossible_port(self, light_repository: Path) -> None:
        with pytest.raises(ServerStartError, match="port 70000 for gRPC .* cannot be used"):
            TritonServer(light_repository, grpc_port=70000).start()

    def test_a_repository_of_other_code_is_to_be_exported_again(self, light_repository: Path) -> None:
        model = "from diffsplat.serving.gone import EncodeModel as TritonPythonModel\n"
        (light_repository / "diffsplat" / "1" / "model.py").write_text(model)
        with pytest.raises(ServerStartError) as caught:
            TritonServer(light_repository).start()
        assert "model diffsplat: ModuleNotFoundError: No module named 'diffsplat.serving.gone'" in str(caught.value)
        assert str(caught.value).endswith("exported by another version of this code: `python -m export` makes it anew")

    def test_a_missing_libpython(self, light_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prerequisites, "find_libpython", lambda: None)
        version = "{}.{}".format(*sys.version_info[:2])
        with pytest.raises(ServerStartError, match=f"install its package .apt-get install libpython{version}"):
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
            pid, prefix, folder = running.pid, workspace_of(running).prefix, running.log_path.parent
            assert told == ["serving on cpu", "loading diffsplat (version 1)", "diffsplat is ready"]
            assert running.requests_in_flight() == 0
            assert len(group_members(pid)) >= 2, "tritonserver and its model"
            assert left_files(prefix) and oct(folder.stat().st_mode)[-2:] == "00", "other users may not look inside"
            assert running.http_url is None
            assert listening_ports(pid) == {str(running.ports["gRPC"]), str(running.ports["metrics"])}
        assert not running.running and not group_members(pid) and not left_files(prefix)
        assert running.exit_reason == "ended with code 0"
        running.stop()  # twice does no harm

    def test_only_whoever_has_the_key_controls_models_memory_and_logs(self, light_repository: Path) -> None:
        """The stages' own memory could be registered, logs switched off and models unloaded by anybody."""
        with TritonServer(light_repository, http_port=0) as running:
            assert running.http_url is not None
            with grpc.insecure_channel(running.grpc_url, options=[("grpc.enable_http_proxy", 0)]) as channel:
                stub = GRPCInferenceServiceStub(channel)
                calls = {
                    stub.SystemSharedMemoryStatus: pb.SystemSharedMemoryStatusRequest(),
                    stub.RepositoryIndex: pb.RepositoryIndexRequest(),
                    stub.RepositoryModelLoad: pb.RepositoryModelLoadRequest(model_name="diffsplat"),
                    stub.LogSettings: pb.LogSettingsRequest(),
                    stub.TraceSetting: pb.TraceSettingRequest(),
                }
                wrong_key = [*[(name, "guess") for name in running.control_headers]]
                for call, message in calls.items():
                    for metadata in ([], wrong_key):
                        with pytest.raises(grpc.RpcError, match="This protocol is restricted"):
                            call(message, metadata=metadata, timeout=TIMEOUT_S)
                    call(message, metadata=list(running.control_headers.items()), timeout=TIMEOUT_S)
                assert stub.ModelStatistics(pb.ModelStatisticsRequest(), timeout=TIMEOUT_S).model_stats
            restricted = {"systemsharedmemory/status": "GET", "logging": "GET", "repository/index": "POST"}
            for path, method in restricted.items():
                assert http_status(f"{running.http_url}/v2/{path}", method) == 403, path
            assert http_status(f"{running.http_url}/v2/health/ready", "GET") == 200

    def test_paths_with_spaces_and_accents(
        self, light_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        awkward = tmp_path / "d\u00e9j\u00e0 vu"
        awkward.mkdir()
        repository = light_repository.rename(awkward / "a repository")
        monkeypatch.setattr(tempfile, "tempdir", str(awkward))
        told: list[str] = []
        with TritonServer(repository, on_progress=told.append) as running:
            assert told[1].startswith("working in /tmp: Triton cannot use a path such as")
            with contextlib.closing(GrpcTransport(running.grpc_url)) as wire:
                assert list(wire.stream("diffsplat", {}, "", TIMEOUT_S)) == [{}]
            assert not list(awkward.glob("diffsplat-server-*"))
            # a noexec TMPDIR does no harm: everything that is executed is a link to the installed wheel
            backend = running.log_path.parent / "backends" / "python"
            assert all(path.is_symlink() for path in backend.iterdir() if path.name != "__pycache__")

    def test_only_files_of_dead_launchers_are_removed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Their process ids do not matter: a launcher in another container has ids of its own."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        script = (
            "from diffsplat.serving.server.workspace import Workspace; print(Workspace().prefix, flush=True); input()"
        )
        launchers = [
            subprocess.Popen(
                [sys.executable, "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "TMPDIR": str(tmp_path)},
            )
            for _ in range(2)
        ]
        try:
            prefixes = [process.stdout.readline().strip() for process in launchers if process.stdout is not None]
            for prefix in prefixes:
                Path(f"/dev/shm/{prefix}region").touch()
            launchers[0].kill()
            launchers[0].wait()
            remove_leftovers()
            assert not left_files(prefixes[0])
            assert len(left_files(prefixes[1])) == 4, "two locks, a folder and a region"
        finally:
            for process in launchers:
                process.kill()
                process.communicate()
        remove_leftovers()
        assert not left_files(prefixes[1])

    def test_a_killed_server_takes_its_models_along(self, light_repository: Path) -> None:
        """Also a model that is stopped and cannot notice anything."""
        with TritonServer(light_repository) as running:
            prefix = workspace_of(running).prefix
            (stub,) = [pid for pid in group_members(running.pid) if pid != running.pid]
            os.kill(stub, signal.SIGSTOP)
            os.kill(running.pid, signal.SIGSEGV)
            wait_for(lambda: not running.running)
            assert running.exit_reason == "was killed by SIGSEGV"
            assert not group_members(running.pid)
            assert {path.name.removeprefix(prefix) for path in left_files(prefix)} == {"lock", "work"}
        assert not left_files(prefix)

    def test_a_killed_guard_takes_the_server_along(self, light_repository: Path) -> None:
        with TritonServer(light_repository) as running:
            assert running._process is not None
            running._process.guard.kill()
            wait_for(lambda: not running.running)
            running.stop()
            wait_for(lambda: not group_members(running.pid))

    def test_a_model_that_does_not_load_is_the_servers_error(self, light_repository: Path, tmp_path: Path) -> None:
        model = light_repository / "diffsplat" / "1" / "model.py"
        fail = "def initialize(self, args):\n        raise ValueError('decoder.onnx: missing')"
        model.write_text(f"class TritonPythonModel:\n    {fail}\n")
        logs = tmp_path / "logs"
        for _ in range(2):
            with pytest.raises(
                ServerStartError, match=r"code 1 while starting:\nmodel diffsplat: ValueError: decoder.onnx: missing$"
            ):
                TritonServer(light_repository, log_folder=logs).start()
        kept = sorted(logs.iterdir())
        assert len(kept) == 2 and all("decoder.onnx: missing" in path.read_text() for path in kept)


@pytest.mark.triton
class TestFaults:
    """What goes wrong with an exported repository."""

    def test_a_missing_graph_is_named_when_the_model_loads(self, pico_repository: Path, tmp_path: Path) -> None:
        """Only `decode` and the ensemble are there: the others need not load for this."""
        for model in ("decode", "diffsplat"):
            shutil.copytree(pico_repository / model, tmp_path / model)
        use_one_process_per_stage(tmp_path)
        (graph,) = (path for path in (tmp_path / "decode" / "1").iterdir() if path.stem in ("decoder", "gsvae"))
        graph.unlink()
        with pytest.raises(ServerStartError, match=f"model decode: .*{graph}: missing"):
            TritonServer(tmp_path).start()

    def test_dead_stages_and_servers_are_seen_by_status_and_by_clients(
        self, pico_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        repository = link_small_repository(pico_repository, tmp_path)
        with TritonServer(repository) as running, Client(running.grpc_url, timeout_s=TIMEOUT_S) as client:
            assert cli.main(["status", "--url", running.grpc_url]) == 0
            for stub in find_stubs(running.pid):
                if stub.model == "reconstruct":
                    os.kill(stub.pid, signal.SIGKILL)
            capsys.readouterr()
            assert cli.main(["status", "--url", running.grpc_url, "--timeout", str(TIMEOUT_S)]) == 1
            states = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
            assert [state[0] for state in states if "READY" not in state] == ["reconstruct"], "Triton calls it ready"
            with client.stream(GenerationRequest("a red cube", steps=200)) as events:
                next(events)
                os.kill(running.pid, signal.SIGKILL)
                with pytest.raises(ServerUnavailableError) as caught:
                    list(events)
            assert running.grpc_url in str(caught.value) and "\n" not in str(caught.value)
            with pytest.raises(ServerUnavailableError):
                client.generate("a red cube")
