"""One server per card: a lock that its launcher and guard hold while they live (flock), named after the card's UUID.

Two servers on one card would not fail at once but at the first request that finds no memory. The file stays when the
lock is released: removing it could remove the lock that another launcher has just taken.
"""

import fcntl
import os
from pathlib import Path

from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.server.workspace import SHM_ROOT


def lock_card(uuid: str, card: str, holder: str, root: Path = SHM_ROOT) -> int:
    """Take the lock of a card; the file descriptor that holds it.

    Args:
        uuid: of the card.
        card: its name in messages.
        holder: what to say to another launcher that wants the card.
        root: folder of the lock, shared by all users of the machine.

    Raises:
        ServerStartError: another server holds it; the message says which.
    """
    path = root / f"diffsplat-gpu-{uuid}.lock"
    fd = _open(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.pread(fd, 4096, 0).decode(errors="replace").strip() or "another process"
        os.close(fd)
        raise ServerStartError(f"{card} is in use by {other}: stop that server, or choose another card") from None
    if os.fstat(fd).st_uid == os.getuid():  # a file of another user can be locked, not written
        os.ftruncate(fd, 0)
        os.pwrite(fd, holder.encode(), 0)
    return fd


def _open(path: Path) -> int:
    """The lock file, created if need be; another user's is opened for reading, which is enough for a lock."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, os.O_RDWR | flags)
    except FileNotFoundError:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
    except PermissionError:
        fd = os.open(path, os.O_RDONLY | flags)
    return fd
