"""Watches one model of a server: sends it a probe again and again, and says when it hangs."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.probes import probe_stage

from diffsplat.serving.server.metrics import busy_instances, executions
from diffsplat.serving.server.processes import Stub, cpu_seconds

NO_TIMEOUT_S = 86400.0  # a probe that waits is never sent twice: each would wait in Triton's queue
IDLE_SHARE = 0.01  # of one CPU; a process that uses less while a probe waits for it does not work on anything


class Fault(NamedTuple):
    """Why a server, or one model of it, is down."""

    reason: str
    model: str = ""  # the only one that is down; empty if it is the server
    pid: int | None = None  # of the only process of the model that is down; None if they all are


class StageWatch:
    """Probes of one model, on a thread of their own until `close`.

    A probe that waits is no fault as such: all instances may be busy with long requests. It is one if a process of the
    model uses no CPU meanwhile (it would have taken the probe if it were free), or if no call has ended for very long.
    """

    def __init__(
        self, transport: GrpcTransport, model: str, pids: list[int], interval_s: float, clock: Callable[[], float]
    ) -> None:
        self.model = model
        self._transport = transport
        self._pids = pids
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._fault = ""
        self._waiting_since_s: float | None = None
        self._cpu_s: dict[int, float] = {}
        self._executions = 0.0
        self._closed = threading.Event()
        threading.Thread(target=self._run, name=f"probe-{model}", daemon=True).start()

    def close(self) -> None:
        """Send no more probes."""
        self._closed.set()

    @property
    def waiting_s(self) -> float:
        """How long the present probe has waited without any sign of work on the model; 0 between two probes."""
        with self._lock:
            return 0.0 if self._waiting_since_s is None else self._clock() - self._waiting_since_s

    def note_executions(self, executions: float) -> None:
        """Another call of the model has ended: it works through its queue, and the wait starts anew."""
        if executions != self._executions:
            self._executions = executions
            self.forgive()

    def forgive(self) -> None:
        """Start the wait of the present probe anew."""
        with self._lock:
            if self._waiting_since_s is not None:
                self._start_waiting()

    def find_fault(self, hang_after_s: float, stall_limit_s: float) -> Fault | None:
        """Why the model is down, None while it works."""
        with self._lock:
            if self._fault:
                return Fault(f"{self.model}: {self._fault}", self.model)
            if self._waiting_since_s is None:
                return None
            waited_s = self._clock() - self._waiting_since_s
            if waited_s < hang_after_s:
                return None
            for pid, before_s in self._cpu_s.items():
                now_s = cpu_seconds(pid)
                if now_s is not None and now_s - before_s < IDLE_SHARE * waited_s:
                    reason = f"process {pid} hangs: no answer for {waited_s:.0f} s, and it does not compute"
                    return Fault(f"{self.model}: {reason}", self.model, pid)
            if waited_s > stall_limit_s:
                return Fault(f"{self.model}: it computes without an answer for {waited_s:.0f} s", self.model)
            return None

    def _start_waiting(self) -> None:
        self._waiting_since_s = self._clock()
        self._cpu_s = {pid: used for pid in self._pids if (used := cpu_seconds(pid)) is not None}

    def _run(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                self._start_waiting()
            fault = probe_stage(self._transport, self.model, NO_TIMEOUT_S)
            with self._lock:
                self._waiting_since_s = None
                self._fault = fault
            if fault or self._closed.wait(self._interval_s):
                return


class BusyWatch:
    """Finds processes that have a request and do not compute.

    A probe goes to a free instance of a model, so it does not find one instance that hangs beside another one.
    """

    def __init__(self, stubs: list[Stub], clock: Callable[[], float]) -> None:
        self._stubs = stubs
        self._clock = clock
        self._idle_since: dict[int, tuple[float, float]] = {}  # pid -> clock and CPU time when it last computed

    def forgive(self) -> None:
        """Start all waits anew."""
        self._idle_since.clear()

    def find_fault(self, busy: set[tuple[str, str]], hang_after_s: float) -> Fault | None:
        """The first process that hangs; `busy`: see `busy_instances`."""
        now_s = self._clock()
        for stub in self._stubs:
            used_s = cpu_seconds(stub.pid)
            if used_s is None or not busy & {(stub.version, name) for name in (stub.instance, stub.model)}:
                self._idle_since.pop(stub.pid, None)
                continue
            since_s, before_s = self._idle_since.setdefault(stub.pid, (now_s, used_s))
            if used_s - before_s >= IDLE_SHARE * max(now_s - since_s, 1.0):
                self._idle_since[stub.pid] = now_s, used_s
            elif now_s - since_s > hang_after_s:
                reason = f"{stub.model}: process {stub.pid} hangs: it has a request and does not compute"
                return Fault(reason, stub.model, stub.pid)
        return None


class ServerWatch:
    """Watches all models of one run of the server."""

    def __init__(
        self, grpc_url: str, stubs: list[Stub], interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport = GrpcTransport(grpc_url)
        self._busy = BusyWatch(stubs, clock)
        pids = {stub.model: [other.pid for other in stubs if other.model == stub.model] for stub in stubs}
        self.stages = [StageWatch(self._transport, model, pids[model], interval_s, clock) for model in pids]

    def close(self) -> None:
        """End all probes."""
        for stage in self.stages:
            stage.close()
        with contextlib.suppress(Exception):  # a channel whose server has died may complain
            self._transport.close()

    def forgive(self) -> None:
        """Start all waits anew, since this process did not run for a while."""
        self._busy.forgive()
        for stage in self.stages:
            stage.forgive()

    def find_fault(self, metrics_page: str, hang_after_s: float, stall_limit_s: float) -> Fault | None:
        """The first model that is down, and why; None while all work. The page may be empty if it cannot be read."""
        if metrics_page:
            done = executions(metrics_page)
            for stage in self.stages:
                stage.note_executions(done.get(stage.model, 0.0))
            if fault := self._busy.find_fault(busy_instances(metrics_page), hang_after_s):
                return fault
        for stage in self.stages:
            if fault := stage.find_fault(hang_after_s, stall_limit_s):
                return fault
        return None
