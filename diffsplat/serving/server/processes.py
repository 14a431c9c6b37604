"""What the kernel says about the processes of a server: who lives, who works, how much memory they take."""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_STUB = "triton_python_backend_stub"
_STATE, _GROUP, _USER_TICKS, _SYSTEM_TICKS, _EXIT_CODE = 0, 2, 11, 12, 49  # fields of /proc/PID/stat after the name


class Stub(NamedTuple):
    """The process of one model instance."""

    pid: int
    model: str
    version: str
    instance: str  # Triton's name of it, such as "decode_0_1"


def find_stubs(server_pid: int) -> list[Stub]:
    """Every stub of a server that lives."""
    stubs = []
    for pid in _group_members(server_pid):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            if os.path.basename(command[0]) == _STUB and not death_of(pid):
                # STUB MODEL/VERSION/model.py ... INSTANCE DEFAULT
                folder = Path(command[1]).parent
                stubs.append(Stub(pid, folder.parent.name, folder.name, command[-3]))
    return stubs


def kill(pids: Iterable[int]) -> None:
    """End processes at once; those that have ended are left alone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def death_of(pid: int) -> str:
    """How a process ended or that it is stopped, such as "was killed by SIGKILL"; empty while it runs."""
    stat = _stat(pid)
    if stat is None:
        return "is gone"
    if stat[_STATE] == "T":
        return "is stopped"
    if stat[_STATE] not in "ZX":
        return ""
    status = int(stat[_EXIT_CODE])
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with code {os.waitstatus_to_exitcode(status)}"


def cpu_seconds(pid: int) -> float | None:
    """Time on a CPU of all threads of a process; None if it is gone."""
    stat = _stat(pid)
    if stat is None:
        return None
    return (int(stat[_USER_TICKS]) + int(stat[_SYSTEM_TICKS])) / os.sysconf("SC_CLK_TCK")


def group_memory(server_pid: int) -> int:
    """Bytes of memory of a server and its stubs; what several of them share counts once."""
    total = 0
    for pid in _group_members(server_pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or less if its control group has a limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            total = min(total, int(Path(path).read_text()))
    return total


def _group_members(leader: int) -> list[int]:
    members = []
    for folder in os.listdir("/proc"):
        if folder.isdigit() and (stat := _stat(int(folder))) is not None and int(stat[_GROUP]) == leader:
            members.append(int(folder))
    return members


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
