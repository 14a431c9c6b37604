"""The parent process of tritonserver: makes sure that no part of the server outlives its launcher.

    launcher (diffsplat serve) --> guard --> tritonserver --> one stub process per model instance

Standard library only: the launcher runs this file by its path (`python -I -S guard.py ...`). The guard

* writes the process id of tritonserver to its standard output;
* passes a SIGTERM on when the launcher writes a byte to its standard input;
* kills the whole process group when that input ends (the launcher has died or wants it so), or when tritonserver ends;
* waits until every process of the server is gone, and removes what the server left in shared memory;
* ends the way tritonserver ended: with its exit code, or by its signal.

If the guard itself is killed, the kernel kills tritonserver (PR_SET_PDEATHSIG), and the stubs notice that their parent
is gone.
"""

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_LAUNCHER_CHECK_S = 1.0  # a process forked by the launcher may hold our input open after the launcher's death
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the launcher decides when the server ends


def remove_marked(root: Path, prefix: str) -> None:
    """Remove everything in `root` whose name starts with `prefix`; the lock file goes last."""
    lock = root / f"{prefix}lock"
    for path in [*(path for path in root.glob(f"{prefix}*") if path != lock), lock]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _run_server(command: list[str], guard: int) -> None:
    """In the child: become tritonserver, leading a session of its own and tied to the guard's life."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != guard:
        os._exit(1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    os.execv(command[0], command)


def _watch(child: int, launcher: int) -> int:
    """Wait for the end of tritonserver; its wait status."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        readable, _, _ = select.select([0, woken], [], [], _LAUNCHER_CHECK_S)
        if woken in readable:
            os.read(woken, 1024)
        order = os.read(0, 1) if 0 in readable else None
        if order:
            os.kill(child, signal.SIGTERM)
        elif order == b"" or os.getppid() != launcher:
            os.killpg(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]


def main(arguments: list[str]) -> int:
    """LAUNCHER_PID PREFIX SHM_ROOT WORK_ROOT COMMAND..."""
    launcher, prefix, shm_root, work_root = int(arguments[0]), arguments[1], Path(arguments[2]), Path(arguments[3])
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # stubs that lose their parent become children of the guard
    guard, child = os.getpid(), os.fork()
    if child == 0:
        try:
            _run_server(arguments[4:], guard)
        finally:
            os._exit(127)
    os.write(1, b"%d\n" % child)
    os.close(1)
    status = _watch(child, launcher)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    for region in shm_root.glob(f"{prefix}*"):
        if region.name != f"{prefix}lock":
            region.unlink(missing_ok=True)
    if os.getppid() != launcher:  # nobody else will do it
        for root in (shm_root, work_root):
            remove_marked(root, prefix)
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if os.WTERMSIG(status) != signal.SIGKILL:
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(guard, os.WTERMSIG(status))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
