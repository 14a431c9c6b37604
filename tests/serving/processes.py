"""What the tests of the launcher and of the supervisor ask the kernel."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

TIMEOUT_S = 300.0  # of a wait that a busy machine must not cut short


def group_members(leader: int) -> list[int]:
    """Processes of a process group that still run."""
    members = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            if int(group) == leader and state != "Z":
                members.append(int(path.parent.name))
    return members


def child_of(pid: int) -> int:
    """The only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until this is true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
