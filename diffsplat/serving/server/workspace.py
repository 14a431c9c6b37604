"""The folder a server works in, and what marks its files as its own.

A server's files in the work root (`TMPDIR`, usually /tmp) and in /dev/shm all start with one random prefix. Beside them
lies a lock file that launcher and guard hold (flock) while they live. Whoever can take the lock may remove the files:
this holds across containers that share a folder, where process ids mean nothing.
"""

import contextlib
import fcntl
import os
import re
import secrets
import tempfile
from pathlib import Path

from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.server.guard import remove_marked

MARK = "diffsplat-server-"
SHM_ROOT = Path("/dev/shm")
_FALLBACK_ROOTS = ("/tmp", "/var/tmp", "/dev/shm")
# Triton hands paths to a shell unquoted, and splits the stub's command line at spaces
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+-]+")


def work_root() -> tuple[Path, str]:
    """The folder for work folders, and one line saying why it is not TMPDIR (empty when it is)."""
    preferred = tempfile.gettempdir()
    for root in (preferred, *_FALLBACK_ROOTS):
        if _PLAIN_PATH.fullmatch(root) and os.access(root, os.W_OK | os.X_OK):
            note = "" if root == preferred else f"working in {root}: Triton cannot use a path such as {preferred!r}"
            return Path(root), note
    raise ServerStartError(
        f"no folder to work in: {', '.join((preferred, *_FALLBACK_ROOTS))} are not writable, or have names with spaces "
        "or accents, which Triton cannot use; set TMPDIR"
    )


class Workspace:
    """The files of one server. `close` removes them.

    Attributes:
        prefix: start of the name of everything that belongs to the server.
        root: folder that holds the work folder.
        folder: the work folder, whose path has no spaces or accents.
        note: one line for the user when the work folder is not where they wanted it.
    """

    def __init__(self) -> None:
        self.root, self.note = work_root()
        self.prefix = f"{MARK}{secrets.token_hex(6)}-"
        self.lock_fds = [lock_path(root / f"{self.prefix}lock") for root in dict.fromkeys((SHM_ROOT, self.root))]
        self.folder = self.root / f"{self.prefix}work"
        self.folder.mkdir(mode=0o700)

    def close(self) -> None:
        """Remove the files and release the locks."""
        for root in (SHM_ROOT, self.root):
            remove_marked(root, self.prefix)
        for fd in self.lock_fds:
            os.close(fd)
        self.lock_fds = []


def lock_path(path: Path) -> int:
    """Create this lock file and take its lock; the file descriptor that holds it."""
    while True:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)  # somebody cleaned up between the two calls


def remove_leftovers() -> None:
    """Remove the files of servers whose launcher and guard were both killed."""
    for root in dict.fromkeys((SHM_ROOT, work_root()[0])):
        for lock in root.glob(f"{MARK}*-lock"):
            with contextlib.suppress(OSError):  # not ours to open, in use, or just removed by another launcher
                fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    if os.fstat(fd).st_uid == os.getuid():
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        remove_marked(root, lock.name.removesuffix("lock"))
                finally:
                    os.close(fd)
