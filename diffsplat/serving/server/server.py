"""Start and stop a tritonserver: the one that the nvidia-pytriton wheel carries, or another one.

    with TritonServer("build/pico") as server:
        client = Client(server.grpc_url)

The server listens on 127.0.0.1 unless told otherwise, and speaks gRPC; HTTP is off unless a port is given. Every
protocol but health, metadata, model configuration, inference and statistics needs `control_key`. The server ends with
its launcher, however the launcher ends (see `guard.py`).

One `TritonServer` is one run of the process. `supervisor/` restarts servers.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from diffsplat_client.contract import ENSEMBLE

from diffsplat.backends import OPENVINO_CACHE_VARIABLE
from diffsplat.serving.drain import DRAIN_FILE_VARIABLE
from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.prerequisites import libpython_problem
from diffsplat.serving.repository.copy import (
    copy_repository,
    count_instances,
    find_chains,
    read_configs,
    version_of,
)
from diffsplat.serving.repository.placement import AUTO, place
from diffsplat.serving.repository.versions import CONFIG
from diffsplat.serving.server.command_line import key_headers, server_command
from diffsplat.serving.server.gpu_lock import lock_card
from diffsplat.serving.server.guarded_process import GuardedProcess, interrupts_held_back
from diffsplat.serving.server.installation import (
    Installation,
    check_address,
    find_installation,
    server_environment,
)
from diffsplat.serving.server.log import LoadingReport, explain_failure, new_log
from diffsplat.serving.server.metrics import read_metrics, requests_in_flight
from diffsplat.serving.server.ports import LOOPBACK, accepts_connections, choose_ports, reached_at
from diffsplat.serving.server.workspace import Workspace, remove_leftovers

START_TIMEOUT_S = 300.0


class TritonServer:
    """A running tritonserver over one exported repository.

    Args:
        repository: folder written by `python -m export`.
        grpc_port, metrics_port: 0 takes a free one.
        http_port: None leaves HTTP off, 0 takes a free one.
        address: IPv4 address on which they listen. The wheel's server takes those of loopback only.
        metrics_address: where the metrics are served, if not there.
        tritonserver: folder of another Triton installation than the wheel's, such as /opt/tritonserver of a container.
        device: "cpu", "cuda:N", or "auto" for the kind of device that the repository was exported for.
        version: of the repository; None serves the one that it names.
        log_folder: where the logs are kept, one per run; None: in the work folder, removed with it.
        on_progress: called with one short line for every model that starts loading or is ready.
        compiled_graphs: folder for what OpenVINO compiles, so that a later start need not; None keeps nothing.
        start_timeout_s: how long loading may take.
        abort: ends `start` with ServerStartError when it is set.

    Attributes:
        grpc_url, http_url, metrics_url: where this machine reaches it, without a scheme for gRPC; http_url is None when
            HTTP is off.
        placement: the device that it serves on.
        pid: process id of tritonserver, which leads a process group of its own.
        log_path: everything the server and its models print.
        version: the version that is served.
        chains: model -> the stages that a request to it passes.
        copy: what the server reads; `supervisor/` changes it.
        control_key: value of the header that the restricted protocols need, see `control_headers`.

    Raises:
        ServerStartError: by `start`, if the folder is not a repository, a port is in use, or the server does not
            become ready.
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        grpc_port: int = 0,
        http_port: int | None = None,
        metrics_port: int = 0,
        address: str = LOOPBACK,
        metrics_address: str | None = None,
        tritonserver: Path | None = None,
        device: str = AUTO,
        version: str | None = None,
        log_folder: Path | None = None,
        on_progress: Callable[[str], None] | None = None,
        compiled_graphs: Path | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        abort: threading.Event | None = None,
    ) -> None:
        self.repository = Path(repository).absolute()
        self.control_key = secrets.token_hex(16)
        self.chains: dict[str, frozenset[str]] = {}
        self._asked_ports = {"gRPC": grpc_port, "metrics": metrics_port}
        if http_port is not None:
            self._asked_ports["HTTP"] = http_port
        self._address = address
        self._metrics_address = metrics_address or address
        self._tritonserver = tritonserver
        self._device = device
        self.version = version
        self._card_lock: int | None = None
        self._log_folder = log_folder
        self._on_progress = on_progress or (lambda line: None)
        self._compiled_graphs = compiled_graphs
        self._start_timeout_s = start_timeout_s
        self._abort = abort or threading.Event()
        self._process: GuardedProcess | None = None
        self._workspace: Workspace | None = None

    def __enter__(self) -> "TritonServer":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.running

    def ends_within(self, timeout_s: float) -> bool:
        """Whether the process has ended, or does so within `timeout_s`."""
        return self._process is None or self._process.ends_within(timeout_s)

    @property
    def exit_reason(self) -> str:
        """How the process ended, such as "was killed by SIGSEGV"."""
        return "has not ended" if self._process is None else self._process.exit_reason

    @property
    def control_headers(self) -> dict[str, str]:
        """The gRPC metadata that opens the restricted protocols."""
        return key_headers(self.control_key)

    def start(self) -> None:
        """Start the server and wait until every model is ready."""
        if not (self.repository / ENSEMBLE / CONFIG).is_file():
            raise ServerStartError(
                f"{self.repository}: not an exported repository ({ENSEMBLE}/{CONFIG} is missing); "
                "`python -m export` makes one"
            )
        problem = libpython_problem()
        if problem:
            raise ServerStartError(problem)
        for address in (self._address, self._metrics_address):
            check_address(address, self._tritonserver)
        installation = find_installation(self._tritonserver)
        self.ports = choose_ports(self._asked_ports, self._address, {"metrics": self._metrics_address})
        host = reached_at(self._address)
        self.grpc_url = f"{host}:{self.ports['gRPC']}"
        self.http_url = f"http://{host}:{self.ports['HTTP']}" if "HTTP" in self.ports else None
        self.metrics_url = f"http://{reached_at(self._metrics_address)}:{self.ports['metrics']}/metrics"
        configs = read_configs(self.repository, self.version)
        self.version = version_of(configs[ENSEMBLE])
        self.chains = find_chains(configs)
        self.placement = place(self.repository, self._device, count_instances(configs), self.version)
        self._on_progress(f"serving on {self.placement.facts}")
        remove_leftovers()
        self._workspace = workspace = Workspace()
        if workspace.note:
            self._on_progress(workspace.note)
        self.drain_file = workspace.folder / "draining"
        try:
            self.log_path = new_log(self._log_folder) if self._log_folder else workspace.folder / "server.log"
            self._lock_card()
            self.copy = copy_repository(
                self.repository, workspace.folder / "repository", configs, self.placement, self.version
            )
            self._launch(installation, workspace)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, waiting for requests in flight, and remove what it left. May be called twice."""
        self._end(GuardedProcess.terminate)

    def kill(self) -> None:
        """Stop the server at once; requests in flight are lost."""
        self._end(GuardedProcess.kill)

    def drain(self) -> None:
        """Let the server refuse new requests as UNAVAILABLE. It goes on with those it has."""
        self.drain_file.touch()

    def requests_in_flight(self, version: str | None = None) -> int | None:
        """Requests that a stage works on or that wait for `denoise`, in one version or (None) in all.

        None if the server does not answer.
        """
        try:
            return requests_in_flight(read_metrics(self.metrics_url), version)
        except OSError:
            return None

    def why_it_failed(self) -> str:
        """What the log says about a failure: one line per model that could not be loaded, else its last lines."""
        return explain_failure(self.log_path).replace(str(self.copy.folder), str(self.repository))

    def _lock_card(self) -> None:
        """Keep other servers off the card. The guard holds the lock too, so that it outlives a killed launcher."""
        facts = self.placement.facts
        if facts.uuid:
            holder = f"diffsplat serve {self.repository} (process {os.getpid()})"
            self._card_lock = lock_card(facts.uuid, str(facts), holder)

    def _launch(self, installation: Installation, workspace: Workspace) -> None:
        environment = {**server_environment(installation), DRAIN_FILE_VARIABLE: str(self.drain_file)}
        if self._compiled_graphs is not None:
            environment[OPENVINO_CACHE_VARIABLE] = str(self._compiled_graphs)
        addresses = (self._address, self._metrics_address)
        command = server_command(installation, workspace, self.copy.folder, *addresses, self.ports, self.control_key)
        kept_fds = [*workspace.lock_fds, *([] if self._card_lock is None else [self._card_lock])]
        self._process = GuardedProcess(command, environment, workspace, self.log_path, kept_fds)
        pid = self._process.wait_for_pid()
        if pid is None:
            raise ServerStartError(f"the Triton server could not be started:\n{self.why_it_failed()}")
        self.pid = pid

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        loading = LoadingReport(self.log_path, self._on_progress)
        while True:
            loading.update()
            if not self.running:
                raise ServerStartError(f"the Triton server {self.exit_reason} while starting:\n{self.why_it_failed()}")
            addresses = {"gRPC": self._address, "metrics": self._metrics_address}
            listens = all(accepts_connections(self.ports[name], reached_at(at)) for name, at in addresses.items())
            if listens and _ready(self.grpc_url):
                loading.update()
                return
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"the Triton server was not ready after {self._start_timeout_s:g} s:\n{self.why_it_failed()}"
                )
            if self._abort.wait(0.1):
                raise ServerStartError("the start was aborted")

    def _end(self, end: Callable[[GuardedProcess], None]) -> None:
        with interrupts_held_back():
            if self._process is not None:
                end(self._process)
            if self._workspace is not None:
                self._workspace.close()
                self._workspace = None
            if self._card_lock is not None:
                os.close(self._card_lock)
                self._card_lock = None


def _ready(grpc_url: str) -> bool:
    from diffsplat_client.grpc_transport import GrpcTransport
    from diffsplat_client.transport import TransportError

    transport = GrpcTransport(grpc_url)
    try:
        return transport.server_ready(timeout_s=2.0)
    except TransportError:
        return False
    finally:
        transport.close()
