"""Keeps a server alive: watches its processes, probes its stages, limits its memory, and restarts it.

    with Supervisor("build/pico") as supervisor:
        client = Client(supervisor.server.grpc_url)

Triton does not restart a model's process, and calls the server ready without it. So the whole server is restarted: it
takes seconds, and every request would have failed at the dead stage anyway.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from diffsplat.serving.control import ControlError, ControlSocket
from diffsplat.serving.metrics import read_metrics
from diffsplat.serving.placement import AUTO
from diffsplat.serving.ports import LOOPBACK
from diffsplat.serving.processes import Stub, death_of, find_stubs, group_memory
from diffsplat.serving.server import TritonServer
from diffsplat.serving.stage_watch import ServerWatch
from diffsplat.serving.supervisor_policy import SupervisorPolicy
from diffsplat.serving.version_switch import SwitchError, VersionSwitch
from diffsplat.serving.versions import activate_version
from diffsplat.serving.wheel import ServerStartError
from diffsplat.serving.workspace import Workspace

_METRICS_INTERVAL_S = 0.9  # time between two looks at how many calls each model has finished, and which are busy
_DEATH_PATIENCE_S = 1.0  # a dying server refuses connections while it still writes its trace
_IDLE_CHECKS, _IDLE_CHECK_S = 3, 0.2  # a request on its way between two stages is not counted for a moment


class Supervisor:
    """A server that is restarted when it, or one of its models, dies or hangs.

    Args:
        repository, grpc_port, http_port, metrics_port, address, metrics_address, tritonserver, device: as for
            TritonServer. The ports stay the same over restarts.
        log_folder: where the logs of all runs are kept.
        policy: when it counts as down.
        on_event: called with one line for every fault and restart.
        on_progress: called with one line for every model that loads, at the first start.
        abort: ends `start` with ServerStartError when it is set.

    Attributes:
        server: the present run. Its `version` is the one that is served.
        restarts: how often the server was restarted; grows when the new run is ready.
        state: "starting", "serving", "restarting", "draining" or "stopped".

    Another process can let it serve another version of its repository: see `control.py`.
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
        log_folder: Path | None = None,
        policy: SupervisorPolicy | None = None,
        on_event: Callable[[str], None] | None = None,
        on_progress: Callable[[str], None] | None = None,
        abort: threading.Event | None = None,
    ) -> None:
        self.policy = policy or SupervisorPolicy()
        self.restarts = 0
        self.state = "starting"
        self._repository = repository
        self._address, self._metrics_address = address, metrics_address
        self._tritonserver, self._device = tritonserver, device
        self._log_folder = log_folder
        self._on_event = on_event or (lambda line: None)
        self._stopping = threading.Event()
        self._draining = False
        self._failures = 0  # restarts in a row
        self._thread: threading.Thread | None = None
        self._watch: ServerWatch | None = None
        self._control: ControlSocket | None = None
        self._switching = threading.Lock()
        self._workspace = Workspace()  # of all runs: a restart takes the graphs that the first start compiled
        self.server = TritonServer(
            repository,
            grpc_port=grpc_port,
            http_port=http_port,
            metrics_port=metrics_port,
            address=address,
            metrics_address=metrics_address,
            tritonserver=tritonserver,
            device=device,
            log_folder=log_folder,
            on_progress=on_progress,
            compiled_graphs=self._workspace.folder,
            abort=abort,
        )

    def __enter__(self) -> "Supervisor":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def run(self) -> int | None:
        """Number of the present run of the server; None while none takes new requests."""
        return self.restarts if self.state == "serving" else None

    def start(self) -> None:
        """Start the server, wait until it is ready, and watch it from then on. Raises ServerStartError."""
        try:
            self.server.start()
        except BaseException:
            self.stop()
            raise
        self._begin_watch()
        try:
            self._control = ControlSocket(self.server.repository, self._answer_switch)
        except OSError as error:
            self._on_event(f"the version cannot be changed while it serves: {error}")
        self._thread = threading.Thread(target=self._run, name="supervisor")
        self._thread.start()

    @property
    def grpc_url(self) -> str:
        """Where this machine reaches the server, without a scheme."""
        return self.server.grpc_url

    @property
    def http_url(self) -> str | None:
        """Of Triton's HTTP protocol, None without it."""
        return self.server.http_url

    def drain(self, timeout_s: float | None = None, give_up: threading.Event | None = None) -> bool:
        """Refuse new requests and wait until those in flight have finished; whether they have.

        Args:
            timeout_s: how long to wait; None takes the policy's.
            give_up: ends the wait when it is set.
        """
        self._draining = True
        if self.state not in ("serving", "draining"):  # between two runs no request is in flight
            return True
        self.state = "draining"
        self.server.drain()
        return self._wait_until_idle(self.policy.drain_timeout_s if timeout_s is None else timeout_s, give_up)

    def stop(self) -> None:
        """Stop watching, then the server. May be called twice."""
        self._stopping.set()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._end_watch()
        self.server.stop()
        self._workspace.close()
        self.state = "stopped"

    def switch(self, version: str, report: Callable[[str], None]) -> None:
        """Serve another version of the repository: requests in flight finish on the present one.

        Returns when the present version is unloaded, or when the server is being stopped.

        Args:
            version: its folders are complete.
            report: called with one line per step.

        Raises:
            SwitchError: the server goes on with the version it had.
        """
        if not self._switching.acquire(blocking=False):
            raise SwitchError("it changes to another version already")
        server = self.server
        try:
            if self.state != "serving":
                raise SwitchError(f"the server is {self.state}")
            if version == self.server.version:
                return
            self._on_event(f"changing from version {self.server.version} to version {version}")
            switch = VersionSwitch(server, version, report)
            switch.load()
            self._on_event(f"version {version} is loaded")
            switch.bind()
            self._on_event(f"version {version} serves")
            activate_version(server.repository, version)  # and so it does after the next start
            switch.retire(lambda: self._stopping.is_set() or self._draining)
        except SwitchError as error:
            self._on_event(f"version {version} is not served: {error}")
            raise
        except OSError as error:
            self._on_event(f"version {version} serves until the next start: {error}")
        finally:
            if self._watch is not None and self.server is server and server.running:  # its processes are others now
                self._end_watch()
                self._begin_watch()
            self._switching.release()

    def _answer_switch(self, version: str, report: Callable[[str], None]) -> None:
        try:
            self.switch(version, report)
        except (SwitchError, ServerStartError) as error:
            raise ControlError(str(error)) from None

    # --- the supervisor's thread ---

    def _run(self) -> None:
        while not self._stopping.wait(self.policy.tick_s):
            if self._switching.locked() and self.server.running:  # processes come and go
                continue
            if self.server.running and (over := self._memory_fault()):
                self._restart(over, cleanly=True)
            elif fault := self._find_fault():
                if self._draining:
                    self._on_event(f"{fault}: the requests in flight are lost")
                    self.server.kill()
                    return
                self._restart(fault)
            if self._watch is None:  # the supervisor is being stopped, and nothing was started again
                return

    def _begin_watch(self) -> None:
        self._stubs = self._served_stubs()
        self._instances = Counter(stub.model for stub in self._stubs)
        self._started_s = self._last_tick_s = self._memory_checked_s = self._metrics_read_s = time.monotonic()
        self._over_memory_since_s: float | None = None
        self._watch = ServerWatch(self.server.grpc_url, self._stubs, self.policy.probe_interval_s)
        self.state = "serving"

    def _served_stubs(self) -> list[Stub]:
        """Processes of the version that is served; those of another one are on their way out."""
        return [stub for stub in find_stubs(self.server.pid) if stub.version == self.server.version]

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _find_fault(self) -> str:
        """Why the server must be restarted; empty while it works."""
        assert self._watch is not None
        if not self.server.running:
            return f"the server {self.server.exit_reason}"
        if fault := self._stub_fault():
            return fault
        now_s = time.monotonic()
        if now_s - self._last_tick_s > 1.0 + self.policy.tick_s:  # this process was stopped, perhaps with the server
            self._watch.forgive()
        self._last_tick_s = now_s
        page = ""
        if now_s - self._metrics_read_s > _METRICS_INTERVAL_S:
            self._metrics_read_s = now_s
            with contextlib.suppress(OSError):
                page = read_metrics(self.server.metrics_url, timeout_s=0.5)
        fault = self._watch.find_fault(page, self.policy.hang_after_s, self.policy.stall_limit_s)
        if fault and self.server.ends_within(_DEATH_PATIENCE_S):  # the probe saw it before its parent did
            return f"the server {self.server.exit_reason}"
        return fault

    def _stub_fault(self) -> str:
        """A model with fewer processes than it started with. A model that is reloaded gets new ones first."""
        deaths = [(stub, death) for stub in self._stubs if (death := death_of(stub.pid))]
        if not deaths or death_of(self.server.pid) not in ("", "is stopped"):
            return ""  # models die with their server: the next look finds out how that ended
        self._stubs = self._served_stubs()
        living = Counter(stub.model for stub in self._stubs)
        for stub, death in deaths:
            if living[stub.model] < self._instances[stub.model]:
                return f"{stub.model}: process {stub.pid} {death}"
        return ""

    def _memory_fault(self) -> str:
        """Why the server must be restarted cleanly now; empty while it need not be, or not yet."""
        now_s = time.monotonic()
        if now_s - self._memory_checked_s < self.policy.memory_interval_s or self._draining:
            return ""
        self._memory_checked_s = now_s
        memory = group_memory(self.server.pid)
        if memory <= self.policy.memory_limit_bytes:
            self._over_memory_since_s = None
            return ""
        limit = f"{memory / 2**20:.0f} MB of memory, limit {self.policy.memory_limit_bytes / 2**20:.0f} MB"
        if self._over_memory_since_s is None:
            self._over_memory_since_s = now_s
            self._on_event(f"the server takes {limit}: it will be restarted when it is idle")
        patient = now_s - self._over_memory_since_s < self.policy.memory_patience_s
        if patient and not self._wait_until_idle(_IDLE_CHECKS * _IDLE_CHECK_S * 1.5):
            return ""
        return f"the server takes {limit}"

    def _wait_until_idle(self, timeout_s: float, give_up: threading.Event | None = None) -> bool:
        """Whether no request is in flight, or the server has died, within `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        idle = 0
        while idle < _IDLE_CHECKS:
            if not self.server.running:
                return False
            idle = idle + 1 if self.server.requests_in_flight() == 0 else 0
            if time.monotonic() > deadline_s or (give_up or self._stopping).wait(_IDLE_CHECK_S):
                return idle >= _IDLE_CHECKS
        return True

    def _restart(self, reason: str, cleanly: bool = False) -> None:
        """End the present run and start another one, again and again until one is ready."""
        self.state = "draining" if cleanly else "restarting"
        kept = f"; the log of this run is {self.server.log_path}" if self._log_folder else ""
        self._on_event(f"{reason}: restarting the server{kept}")
        self._end_watch()
        if cleanly:
            self.server.drain()
            if not self._wait_until_idle(self.policy.drain_timeout_s):
                self._on_event(f"requests still in flight after {self.policy.drain_timeout_s:g} s are lost")
            self.state = "restarting"
            self.server.stop()
        else:
            self.server.kill()
        if time.monotonic() - self._started_s > self.policy.stable_after_s:
            self._failures = 0
        while not (self._stopping.is_set() or self._draining):
            delays = self.policy.restart_delays_s
            if self._stopping.wait(delays[min(self._failures, len(delays) - 1)]):
                return
            self._failures += 1
            try:
                self._start_again()
            except ServerStartError as error:
                if not self._stopping.is_set():
                    self._on_event(f"the restart failed: {error}")
            else:
                return

    def _start_again(self) -> None:
        ports = self.server.ports
        started_s = time.monotonic()
        self.server = TritonServer(
            self._repository,
            grpc_port=ports["gRPC"],
            http_port=ports.get("HTTP"),
            metrics_port=ports["metrics"],
            address=self._address,
            metrics_address=self._metrics_address,
            tritonserver=self._tritonserver,
            device=self._device,
            version=self.server.version,
            log_folder=self._log_folder,
            compiled_graphs=self._workspace.folder,
            abort=self._stopping,
        )
        self.server.ports = ports  # known even if the start fails
        self.server.start()
        self._begin_watch()
        self.restarts += 1
        self._on_event(f"serving again after {time.monotonic() - started_s:.1f} s (restart {self.restarts})")
