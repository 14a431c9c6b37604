"""Watches one model of a server: sends it a probe again and again, and says when it hangs."""

import contextlib
import threading
import time
from collections.abc import Callable

from diffsplat_client.probes import Probe
from diffsplat_client.transport import GrpcTransport

from diffsplat.serving.processes import cpu_seconds

NO_TIMEOUT_S = 86400.0  # a probe that waits is never sent twice: each would wait in Triton's queue
IDLE_SHARE = 0.01  # of one CPU; a process that uses less while a probe waits for it does not work on anything


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

    def find_fault(self, hang_after_s: float, stall_limit_s: float) -> str:
        """Why the model is down, empty while it works."""
        with self._lock:
            if self._fault or self._waiting_since_s is None:
                return self._fault
            waited_s = self._clock() - self._waiting_since_s
            if waited_s < hang_after_s:
                return ""
            for pid, before_s in self._cpu_s.items():
                now_s = cpu_seconds(pid)
                if now_s is not None and now_s - before_s < IDLE_SHARE * waited_s:
                    return f"process {pid} hangs: no answer for {waited_s:.0f} s, and it does not compute"
            if waited_s > stall_limit_s:
                return f"it computes without an answer for {waited_s:.0f} s"
            return ""

    def _start_waiting(self) -> None:
        self._waiting_since_s = self._clock()
        self._cpu_s = {pid: used for pid in self._pids if (used := cpu_seconds(pid)) is not None}

    def _run(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                self._start_waiting()
            fault = Probe(self._transport, self.model, NO_TIMEOUT_S).wait()
            with self._lock:
                self._waiting_since_s = None
                self._fault = fault
            if fault or self._closed.wait(self._interval_s):
                return


class ServerWatch:
    """Watches of all models of one run of the server."""

    def __init__(
        self,
        grpc_url: str,
        pids_of_models: dict[str, list[int]],
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = GrpcTransport(grpc_url)
        self.stages = [
            StageWatch(self._transport, model, pids, interval_s, clock) for model, pids in pids_of_models.items()
        ]

    def close(self) -> None:
        """End all probes."""
        for stage in self.stages:
            stage.close()
        with contextlib.suppress(Exception):  # a channel whose server has died may complain
            self._transport.close()

    def find_fault(self, hang_after_s: float, stall_limit_s: float) -> str:
        """The first model that is down, and why; empty while all work."""
        for stage in self.stages:
            if fault := stage.find_fault(hang_after_s, stall_limit_s):
                return f"{stage.model}: {fault}"
        return ""
