"""The process of a tritonserver below its guard: how it is started, how it ends, and how it is made to."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffsplat.serving.server import guard
from diffsplat.serving.server.command_line import STOP_TIMEOUT_S
from diffsplat.serving.server.workspace import SHM_ROOT, Workspace

KILL_AFTER_S = STOP_TIMEOUT_S + 10.0  # after SIGTERM; then the whole process group is killed


class GuardedProcess:
    """A tritonserver and the guard above it; both end with this process, however it ends.

    Args:
        command: of the tritonserver.
        environment: of it and of its models.
        workspace: whose files the guard removes.
        log_path: gets everything that they print.
        kept_fds: open files that the guard holds until it ends.

    Attributes:
        guard: its process.
        pid: process id of tritonserver, which leads a process group of its own; None until `wait_for_pid`.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        workspace: Workspace,
        log_path: Path,
        kept_fds: Sequence[int],
    ) -> None:
        self.pid: int | None = None
        below = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid())]
        below += [workspace.prefix, str(SHM_ROOT), str(workspace.root), *command]
        with log_path.open("wb") as log:
            self.guard = subprocess.Popen(
                below,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
                pass_fds=kept_fds,
            )

    def wait_for_pid(self) -> int | None:
        """The process id of tritonserver, as soon as it has one; None: it could not be started."""
        assert self.guard.stdout is not None
        with self.guard.stdout as answer:
            line = answer.readline()
        self.pid = int(line) if line else None
        return self.pid

    @property
    def running(self) -> bool:
        """Whether it is alive."""
        return self.guard.poll() is None

    def ends_within(self, timeout_s: float) -> bool:
        """Whether it has ended, or does so within `timeout_s`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.guard.wait(timeout_s)
        return not self.running

    @property
    def exit_reason(self) -> str:
        """How it ended, such as "was killed by SIGSEGV"."""
        code = self.guard.poll()
        if code is None:
            return "has not ended"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def terminate(self) -> None:
        """End it, with time for the requests in flight."""
        self._end(clean=True)

    def kill(self) -> None:
        """End it at once."""
        self._end(clean=False)

    def _end(self, clean: bool) -> None:
        stdin = self.guard.stdin
        assert stdin is not None
        if stdin.closed:  # it was ended before
            return
        if clean and self.running:
            with contextlib.suppress(BrokenPipeError):  # it has just ended
                stdin.write(b"T")
                stdin.flush()
                self.ends_within(KILL_AFTER_S)
        with contextlib.suppress(BrokenPipeError):
            stdin.close()  # kills whatever is left
        self.guard.wait()
        if self.guard.returncode == -signal.SIGKILL and self.pid is not None:  # perhaps the guard's own end
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Ignore SIGINT and SIGTERM, so that a second Ctrl-C during shutdown does not leave the server running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
