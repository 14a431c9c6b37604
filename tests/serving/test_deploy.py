"""The container of deploy/: its entry point and health probe run against the wheel's server; its files fit the code.

No image is built here.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from diffsplat_client import cli

from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.server.guarded_process import KILL_AFTER_S
from diffsplat.serving.server.installation import find_installation
from diffsplat.serving.server.processes import find_stubs
from diffsplat.serving.server.server import TritonServer
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from export.__main__ import export_parser
from tests.serving.processes import TIMEOUT_S, child_of, group_members, wait_for

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ENTRY_POINT = DEPLOY / "entrypoint.sh"
OTHER_LOOPBACK = "127.0.0.2"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's server, laid out as in NVIDIA's images."""
    wheel, folder = find_installation(None), tmp_path_factory.mktemp("image") / "tritonserver"
    backend = folder / "backends" / "python"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(wheel.server, folder / "bin" / "tritonserver")
    shutil.copytree(wheel.backend, backend, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(wheel.stub, backend / wheel.stub.name)
    (folder / "lib").symlink_to(wheel.libraries)
    return folder


def entry_point(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Start it with this venv's `diffsplat` first on PATH, as in the image."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if name != "NVIDIA_TRITON_SERVER_VERSION"}
    return subprocess.Popen(
        [ENTRY_POINT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**inherited, "PATH": path, **environment},
    )


@pytest.fixture
def container(installation: Path, light_repository: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """The entry point over a repository, with its own server, on an address and ports of the test's."""
    process = entry_point(
        *("--address", OTHER_LOOPBACK, "--grpc-port", "0", "--metrics-port", "0"),
        NVIDIA_TRITON_SERVER_VERSION="26.10",
        TRITON_HOME=str(installation),
        DIFFSPLAT_REPOSITORY=str(light_repository),
        DIFFSPLAT_LOGS=str(tmp_path / "logs"),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def serve_defaults() -> argparse.Namespace:
    """What `diffsplat serve DIR` means."""
    arguments = ["serve", "DIR"]
    return cli._parser(arguments).parse_args(arguments)


def read_until(process: "subprocess.Popen[str]", words: str) -> str:
    assert process.stdout is not None
    said = ""
    while words not in said:
        line = process.stdout.readline()
        assert line, f"ended early: {said}"
        said += line
    return said


@pytest.mark.triton
def test_the_entry_point_serves_with_the_images_own_server(
    container: "subprocess.Popen[str]", installation: Path, tmp_path: Path
) -> None:
    said = read_until(container, "Ctrl-C stops the server")
    (url,) = re.findall(rf"gRPC ({OTHER_LOOPBACK}:\d+)   metrics http://{OTHER_LOOPBACK}:", said)
    server = child_of(child_of(container.pid))
    assert Path(f"/proc/{server}/exe").readlink() == installation / "bin" / "tritonserver"
    assert {Path(f"/proc/{stub.pid}/exe").readlink().parent for stub in find_stubs(server)} == {
        installation / "backends" / "python"
    }
    with grpc.insecure_channel(url) as channel:  # gRPC's health protocol, which orchestrators speak
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=TIMEOUT_S) == b"\x08\x01", "field 1, SERVING"
    container.send_signal(signal.SIGTERM)
    rest, _ = container.communicate(timeout=TIMEOUT_S)
    assert container.returncode == 0 and rest.endswith("stopped\n")
    wait_for(lambda: not group_members(server))
    assert "Started GRPCInferenceService" in next((tmp_path / "logs").glob("server-*.log")).read_text()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "NVIDIA_TRITON_SERVER_VERSION: is not set"),
        ({"NVIDIA_TRITON_SERVER_VERSION": "26.06"}, "Triton 26.06 has known vulnerabilities: .* 26.07 or newer"),
        ({"NVIDIA_TRITON_SERVER_VERSION": "24.10"}, "Triton 24.10 has known"),
        ({"NVIDIA_TRITON_SERVER_VERSION": "26.07", "TRITON_HOME": "/nowhere"}, "--tritonserver /nowhere: not a Triton"),
    ],
)
def test_what_the_entry_point_refuses(light_repository: Path, environment: dict[str, str], reason: str) -> None:
    process = entry_point(DIFFSPLAT_REPOSITORY=str(light_repository), **environment)
    said, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode != 0 and re.search(reason, said), said


@pytest.mark.parametrize("release", ["26.07", "26.10", "27.01"])
def test_releases_that_an_image_may_be_built_on(release: str) -> None:
    process = entry_point("--check", NVIDIA_TRITON_SERVER_VERSION=release)
    said, _ = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, said) == (0, "")


class TestInstallations:
    """What `--tritonserver` and `--address` refuse."""

    def refusal(self, repository: Path, **options: Any) -> str:
        with pytest.raises(ServerStartError) as caught:
            TritonServer(repository, **options).start()
        return str(caught.value)

    @pytest.mark.parametrize(
        "missing",
        ["bin/tritonserver", "backends/python/libtriton_python.so", "backends/python/triton_python_backend_stub"],
    )
    def test_a_folder_that_lacks_something(
        self, installation: Path, light_repository: Path, tmp_path: Path, missing: str
    ) -> None:
        folder = tmp_path / "tritonserver"
        shutil.copytree(installation, folder, symlinks=True)
        (folder / missing).unlink()
        assert f"{folder}: not a Triton installation ({folder / missing} is missing)" in self.refusal(
            light_repository, tritonserver=folder
        )

    def test_a_backend_of_another_python(self, installation: Path, light_repository: Path, tmp_path: Path) -> None:
        folder = tmp_path / "tritonserver"
        shutil.copytree(installation, folder, symlinks=True)
        (folder / "backends" / "python" / "triton_python_backend_stub").write_bytes(b"\x7fELF libpython3.9.so.1.0\0")
        assert "its Python backend runs Python 3.9, and this is Python 3.1" in self.refusal(
            light_repository, tritonserver=folder
        )

    @pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1"])
    def test_the_wheels_server_is_not_offered_to_a_network(self, light_repository: Path, address: str) -> None:
        assert "Triton 2.51 has known vulnerabilities" in self.refusal(light_repository, address=address)

    @pytest.mark.parametrize("address", ["localhost", "::1", "127.0.0.256", ""])
    def test_addresses_are_numbers(self, light_repository: Path, address: str) -> None:
        assert f"--address {address}: must be an IPv4 address" in self.refusal(light_repository, address=address)

    def test_an_address_of_another_machine(self, installation: Path, light_repository: Path) -> None:
        refusal = self.refusal(light_repository, tritonserver=installation, address="192.0.2.1")
        assert "for gRPC on 192.0.2.1 cannot be used" in refusal


def instructions(name: str) -> list[str]:
    """Arguments of every instruction of the Dockerfile with this name, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_the_images_files_exist_and_are_sent_to_the_build() -> None:
    sent = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in instructions("COPY") for source in line.split()[:-1]}
    assert copied == sent and len(copied) > 8
    assert not [source for source in copied if not (DEPLOY.parent / source).exists()]
    (start,) = instructions("ENTRYPOINT")
    assert start == '["/opt/diffsplat/deploy/entrypoint.sh"]' and os.access(ENTRY_POINT, os.X_OK)


def test_the_base_image_is_an_argument_without_default() -> None:
    assert instructions("ARG")[0] == "TRITON_IMAGE"
    assert instructions("FROM") == ["${TRITON_IMAGE}"]


def test_its_extras_are_those_of_the_package() -> None:
    (default,) = (value.removeprefix("EXTRAS=") for value in instructions("ARG") if value.startswith("EXTRAS="))
    extras = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(default.split(",")) <= set(extras) - {"server"}, "the server is the image's"


def test_the_container_is_not_root() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    user = instructions("USER")[-1]
    assert re.search(rf"useradd --uid \d{{4,}} .*{user}$", text, re.M)
    assert text.index(f"\nUSER {user}") < text.index("\nENTRYPOINT"), "the server is started after it"


@pytest.mark.triton
def test_the_health_check_tells_up_from_down(server: TritonServer, capfd: pytest.CaptureFixture[str]) -> None:
    (line,) = instructions("HEALTHCHECK")
    command = yaml.safe_load(line.partition("CMD ")[2])
    url, wait_s = command[command.index("--url") + 1], float(command[command.index("--timeout") + 1])
    (limit,) = re.findall(r"--timeout=(\d+)s", line)
    assert command[0] == "diffsplat" and float(limit) > wait_s, "Docker ends the check before it says what is down"
    default = serve_defaults()
    assert url == f"127.0.0.1:{default.grpc_port}"
    assert cli.main([server.grpc_url if part == url else part for part in command[1:]]) == 0
    assert "ready" in capfd.readouterr().out
    assert cli.main(["127.0.0.1:1" if part == url else part for part in command[1:]]) == 1


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of deploy/compose.yaml."""
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return services


class TestCompose:
    """deploy/compose.yaml."""

    def test_ports_are_those_of_the_command_and_of_the_image(self, services: dict[str, Any]) -> None:
        default = serve_defaults()
        assert default.http_port is None
        ports = [str(default.grpc_port), str(default.metrics_port), str(default.metrics_port + 1)]
        assert instructions("EXPOSE") == [" ".join(ports)]
        published = [port.split(":")[-2:] for port in services["diffsplat"]["ports"]]
        assert published == [[port, port] for port in ports]
        for metrics in services["diffsplat"]["ports"][1:]:
            assert metrics.startswith("127.0.0.1:"), "metrics are not for clients"

    def test_a_stop_leaves_time_to_drain(self, services: dict[str, Any]) -> None:
        grace_s = float(services["diffsplat"]["stop_grace_period"].removesuffix("s"))
        assert grace_s >= SupervisorPolicy.drain_timeout_s + KILL_AFTER_S
        assert instructions("STOPSIGNAL") == ["SIGTERM"]

    def test_shared_memory_is_larger_than_dockers(self, services: dict[str, Any]) -> None:
        assert services["diffsplat"]["shm_size"] == "2gb"

    def test_privileges(self, services: dict[str, Any]) -> None:
        for service in services.values():
            assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
            assert "privileged" not in service and "user" not in service

    def test_it_builds_this_dockerfile_and_asks_for_the_base_image(self, services: dict[str, Any]) -> None:
        for service in services.values():
            build = service["build"]
            assert (DEPLOY / build["context"]).resolve() == DEPLOY.parent
            assert (DEPLOY.parent / build["dockerfile"]).is_file()
            assert build["args"]["TRITON_IMAGE"].startswith("${TRITON_IMAGE:?")

    def test_the_export_writes_what_is_served(self, services: dict[str, Any]) -> None:
        export, volumes = services["export"], services["diffsplat"]["volumes"]
        assert export["entrypoint"] == ["python", "-m", "export"]
        given = [
            re.sub(r"\$\{\w+:-(\w+)\}", r"\1", part) for part in export["command"]
        ]  # what an empty environment gives
        options = export_parser().parse_args(given)
        out = options.out
        assert str(options.bundle) == "/bundles/nano" and (options.device, options.precision) == ("cuda", "bf16")
        assert f"DIFFSPLAT_REPOSITORY:-{out}" in ENTRY_POINT.read_text()
        assert "data:/data" in export["volumes"] and "data:/data" in volumes
        assert any(volume.startswith("../bundles:/bundles") for volume in export["volumes"])
        assert (DEPLOY.parent / "bundles" / "nano").is_dir()
