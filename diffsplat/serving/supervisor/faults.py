"""What is wrong with a running server: processes that died or hang, models that do not answer, too much memory."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable

from diffsplat.serving.server.metrics import read_metrics
from diffsplat.serving.server.processes import Stub, death_of, find_stubs, group_memory
from diffsplat.serving.server.server import TritonServer
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from diffsplat.serving.supervisor.stage_watch import Fault, ServerWatch

_METRICS_INTERVAL_S = 0.9  # time between two looks at how many calls each model has finished, and which are busy
_DEATH_PATIENCE_S = 1.0  # a dying server refuses connections while it still writes its trace


class FaultWatch:
    """Watches one run of a server; from one change of its processes to the next.

    Args:
        server: it runs, and all its models are ready.
        policy: when it counts as down.
        reloads: how often a stage of this run was loaded anew before.
        on_event: called with one line when it must be restarted, but works.
    """

    def __init__(
        self, server: TritonServer, policy: SupervisorPolicy, reloads: int, on_event: Callable[[str], None]
    ) -> None:
        self.started_s = time.monotonic()
        self._server, self._policy, self._reloads, self._on_event = server, policy, reloads, on_event
        self.stubs = self._served_stubs()
        self._instances = Counter(stub.model for stub in self.stubs)
        self._last_look_s = self._wear_checked_s = self._metrics_read_s = self.started_s
        self._worn_since_s: float | None = None
        self.watch = ServerWatch(server.grpc_url, self.stubs, policy.probe_interval_s)

    def close(self) -> None:
        """Watch no more."""
        self.watch.close()

    def find(self) -> Fault | None:
        """What is down; None while all works."""
        if not self._server.running:
            return Fault(f"the server {self._server.exit_reason}")
        if fault := self._find_death():
            return fault
        now_s = time.monotonic()
        if now_s - self._last_look_s > 1.0 + self._policy.tick_s:  # this process was stopped, perhaps with the server
            self.watch.forgive()
        self._last_look_s = now_s
        page = ""
        if now_s - self._metrics_read_s > _METRICS_INTERVAL_S:
            self._metrics_read_s = now_s
            with contextlib.suppress(OSError):
                page = read_metrics(self._server.metrics_url, timeout_s=0.5)
        fault = self.watch.find_fault(page, self._policy.hang_after_s, self._policy.stall_limit_s)
        if fault and self._server.ends_within(_DEATH_PATIENCE_S):  # the probe saw it before its parent did
            return Fault(f"the server {self._server.exit_reason}")
        return fault

    def find_wear(self, idle_within: Callable[[float], bool], idle_check_s: float) -> str:
        """Why the server must be restarted cleanly now; empty while it need not be, or not yet.

        Args:
            idle_within: whether the server becomes idle in so many seconds.
            idle_check_s: how long that takes of an idle one.
        """
        now_s = time.monotonic()
        if now_s - self._wear_checked_s < self._policy.memory_interval_s:
            return ""
        self._wear_checked_s = now_s
        if not (wear := self._wear()):
            self._worn_since_s = None
            return ""
        if self._worn_since_s is None:
            self._worn_since_s = now_s
            self._on_event(f"the server {wear}: it will be restarted when it is idle")
        patient = now_s - self._worn_since_s < self._policy.memory_patience_s
        if patient and not idle_within(idle_check_s):
            return ""
        return f"the server {wear}"

    def _wear(self) -> str:
        if self._reloads >= self._policy.max_reloads:
            return f"keeps what is left of {self._reloads} dead stages"
        memory, limit = group_memory(self._server.pid), self._policy.memory_limit_bytes
        return f"takes {memory / 2**20:.0f} MB of memory, limit {limit / 2**20:.0f} MB" if memory > limit else ""

    def _served_stubs(self) -> list[Stub]:
        """Processes of the version that is served; those of another one are on their way out."""
        return [stub for stub in find_stubs(self._server.pid) if stub.version == self._server.version]

    def _find_death(self) -> Fault | None:
        """A model with fewer processes than it started with. A model that is reloaded gets new ones first."""
        deaths = [(stub, death) for stub in self.stubs if (death := death_of(stub.pid))]
        if not deaths or death_of(self._server.pid) not in ("", "is stopped"):
            return None  # models die with their server: the next look finds out how that ended
        self.stubs = self._served_stubs()
        living = Counter(stub.model for stub in self.stubs)
        for stub, death in deaths:
            if living[stub.model] < self._instances[stub.model]:
                return Fault(f"{stub.model}: process {stub.pid} {death}", stub.model, stub.pid)
        return None
