"""What a running `diffsplat serve` holds: processes, threads, open files, files in /dev/shm, memory."""

import contextlib
import os
import re
import time
from collections import Counter
from pathlib import Path

from diffsplat.serving.server.processes import death_of
from diffsplat.serving.supervisor.policy import SupervisorPolicy

# what may be more at the end than after the warm-up: pools of threads, connections that end a little later, what an
# allocator keeps, and the files of two processes for each stage that Triton has loaded anew since it started
SLACK = {
    "processes": 0,
    "threads": 16,
    "files": 16,
    "shared_memory": 2 * SupervisorPolicy.max_reloads,
    "edge_mb": 64,
    "models_mb": 384,
}
SETTLE_S = 300.0  # of a busy machine; a service that is idle has settled at once
_STUB = "triton_python_backend_stub"


def descendants(pid: int) -> list[int]:
    """A process and everything below it that runs; what has ended and waits to be reaped is left out."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                if not death_of(child):
                    found += descendants(child)
    return found


def command_of(pid: int) -> list[str]:
    """Its command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def server_name(pid: int) -> str:
    """Either "tritonserver" or the model whose process it is; empty for any other process."""
    words = command_of(pid)
    name = Path(words[0]).name
    if name == _STUB:
        return words[1].split("/")[-3]
    return name if name == "tritonserver" else ""


def server_processes(launcher: int) -> dict[int, str]:
    """Process id -> "tritonserver", or the model whose process it is."""
    return {pid: name for pid in descendants(launcher)[1:] if (name := server_name(pid))}


class Footprint:
    """Of a service whose launcher is this process."""

    def __init__(self, launcher: int) -> None:
        self._launcher = launcher
        self._names: set[str] = set()  # of every run of the server so far, as their files in /dev/shm begin
        self.shares: dict[str, Counter[str]] = {}  # of the figures last taken, by what a process is

    def take(self) -> dict[str, int]:
        """The present one."""
        pids = descendants(self._launcher)
        for pid in pids:
            self._names |= set(re.findall(r"diffsplat-server-[0-9a-f]+", " ".join(command_of(pid))))
        self.shares = {}
        for pid in pids:
            share = self.shares.setdefault(server_name(pid) or Path(command_of(pid)[0]).name, Counter())
            share["processes"] += 1
            share["threads"] += len(os.listdir(f"/proc/{pid}/task"))
            share["files"] += len(os.listdir(f"/proc/{pid}/fd"))
        sums = sum(self.shares.values(), Counter())
        return {
            **{name: sums[name] for name in ("processes", "threads", "files")},
            "shared_memory": sum(path.name.startswith(tuple(self._names)) for path in Path("/dev/shm").iterdir()),
            "edge_mb": _memory_mb(self._launcher),
            "models_mb": sum(map(_memory_mb, pids[1:])),
        }

    def settle(self, before: dict[str, int]) -> tuple[dict[str, int], list[str]]:
        """The one when nothing goes any more, and what is more than it was when `take` was called last."""
        shares = self.shares
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            more = list(SLACK)
            with contextlib.suppress(OSError):  # a process has just ended
                after = self.take()
                more = [name for name, slack in SLACK.items() if after[name] > before[name] + slack]
            if not more or time.monotonic() > deadline_s:
                return after, [f"{name}: {before[name]} -> {after[name]}{self._whose(name, shares)}" for name in more]
            time.sleep(0.5)

    def _whose(self, name: str, before: dict[str, Counter[str]]) -> str:
        """By which processes a figure has changed."""
        kinds = sorted({*before, *self.shares})
        counts = [(kind, before.get(kind, Counter())[name], self.shares.get(kind, Counter())[name]) for kind in kinds]
        changed = ", ".join(f"{kind} {old} -> {new}" for kind, old, new in counts if old != new)
        return f" ({changed})" if changed else ""


def _memory_mb(pid: int) -> int:
    """What a process has for itself, and its share of what it has with others; 0 of one that waits to be reaped."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except ProcessLookupError:
        return 0
    return int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.M)[0]) // 1024
