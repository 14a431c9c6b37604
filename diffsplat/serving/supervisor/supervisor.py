"""Keeps a server alive: watches its processes, probes its stages, limits its memory, and restarts it.

    with Supervisor("build/pico") as supervisor:
        client = Client(supervisor.server.grpc_url)

Triton does not restart a model's process, and calls the server ready without it. Where an edge sends the requests of
the dead stage again (`SupervisorPolicy.reload_stages`), that stage alone is loaded anew; else, and if that fails, the
whole server is restarted, so that no client waits for an answer that never comes.
"""

import functools
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.repository.placement import AUTO
from diffsplat.serving.repository.versions import activate_version
from diffsplat.serving.server.ports import LOOPBACK
from diffsplat.serving.server.server import TritonServer
from diffsplat.serving.server.workspace import Workspace
from diffsplat.serving.supervisor.control import ControlError, ControlSocket
from diffsplat.serving.supervisor.faults import FaultWatch
from diffsplat.serving.supervisor.model_control import LoadError
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from diffsplat.serving.supervisor.stage_reload import reload_stage
from diffsplat.serving.supervisor.stage_watch import Fault
from diffsplat.serving.supervisor.version_switch import SwitchError, VersionSwitch

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
        reloads: how often each stage was loaded anew since the first start.
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
        self.reloads: Counter[str] = Counter()
        self.state = "starting"
        self._log_folder = log_folder
        self._on_event = on_event or (lambda line: None)
        self._stopping = threading.Event()
        self._draining = False
        self._failures = 0  # restarts in a row
        self._thread: threading.Thread | None = None
        self._watch: FaultWatch | None = None
        self._reloading = ""  # the stage that is loaded anew
        self._reloaded_s: dict[str, float] = {}  # stage -> when it was, last
        self._control: ControlSocket | None = None
        self._changing = threading.Lock()
        self._workspace = Workspace()  # of all runs: a restart takes the graphs that the first start compiled
        self._new_server = functools.partial(
            TritonServer,
            repository,
            address=address,
            metrics_address=metrics_address,
            tritonserver=tritonserver,
            device=device,
            log_folder=log_folder,
            compiled_graphs=self._workspace.folder,
        )
        self.server = self._new_server(
            grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, on_progress=on_progress, abort=abort
        )

    def __enter__(self) -> "Supervisor":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def run_of(self, model: str) -> int | None:
        """Number of the present run of a model with all stages that it uses; None while it takes no new requests."""
        stages = self.server.chains.get(model, frozenset())
        if self.state != "serving" or self._reloading in stages:
            return None
        return self.restarts + sum(self.reloads[stage] for stage in stages)

    def start(self) -> None:
        """Start the server, wait until it is ready, and watch it from then on. Raises ServerStartError."""
        try:
            self.server.start()
        except BaseException:
            self.stop()
            raise
        self._serve()
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
        if not self._changing.acquire(blocking=False):
            raise SwitchError("its models are being changed already")
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
            self._changing.release()

    def _answer_switch(self, version: str, report: Callable[[str], None]) -> None:
        try:
            self.switch(version, report)
        except (SwitchError, ServerStartError) as error:
            raise ControlError(str(error)) from None

    # --- the supervisor's thread ---

    def _run(self) -> None:
        while not self._stopping.wait(self.policy.tick_s):
            if self._changing.locked() and self.server.running:  # processes come and go
                continue
            assert self._watch is not None
            if self.server.running and (wear := self._find_wear()):
                self._restart(wear, cleanly=True)
            elif fault := self._watch.find():
                self._heal(fault)
            if self._watch is None:  # the supervisor is being stopped, and nothing was started again
                return

    def _serve(self) -> None:
        self._started_s = time.monotonic()
        self._reloads_of_run = 0
        self._begin_watch()
        self.state = "serving"

    def _find_wear(self) -> str:
        assert self._watch is not None
        return (
            "" if self._draining else self._watch.find_wear(self._wait_until_idle, _IDLE_CHECKS * _IDLE_CHECK_S * 1.5)
        )

    def _begin_watch(self) -> None:
        self._watch = FaultWatch(self.server, self.policy, self._reloads_of_run, self._on_event)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _heal(self, fault: Fault) -> None:
        if self._draining:
            self._on_event(f"{fault.reason}: the requests in flight are lost")
            self._end_watch()
            self.server.kill()
        elif not self._reload(fault) and not self._stopping.is_set():
            self._restart(fault.reason)

    def _reload(self, fault: Fault) -> bool:
        """Load the stage that is down anew; whether it works again. Not twice in a row: then it is more than that."""
        model, now_s = fault.model, time.monotonic()
        recently = now_s - self._reloaded_s.get(model, -math.inf) < self.policy.stable_after_s
        if not (model and self.policy.reload_stages) or recently or not self._changing.acquire(blocking=False):
            return False
        assert self._watch is not None
        try:
            self._on_event(f"{fault.reason}: loading {model} again")
            self._reloading = model
            self._end_watch()
            reload_stage(self.server, model, fault.pid, self._stopping)
        except LoadError as error:
            if not self._stopping.is_set():
                self._on_event(f"{model} was not loaded again: {error}")
            return False
        else:
            self._reloaded_s[model] = time.monotonic()
            self.reloads[model] += 1
            self._reloads_of_run += 1
            self._begin_watch()
            self._on_event(f"{model} works again after {time.monotonic() - now_s:.1f} s")
            return True
        finally:
            self._reloading = ""
            self._changing.release()

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
        self.server = self._new_server(
            grpc_port=ports["gRPC"],
            http_port=ports.get("HTTP"),
            metrics_port=ports["metrics"],
            version=self.server.version,
            abort=self._stopping,
        )
        self.server.ports = ports  # known even if the start fails
        self.server.start()
        self._serve()
        self.restarts += 1
        self._on_event(f"serving again after {time.monotonic() - started_s:.1f} s (restart {self.restarts})")
