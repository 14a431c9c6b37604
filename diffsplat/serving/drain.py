"""Draining: the launcher creates a file, and the first stages refuse new requests while it exists."""

import os

DRAIN_FILE_VARIABLE = "DIFFSPLAT_DRAIN_FILE"  # environment variable of the server's processes: path of that file
DRAINING = "the server is shutting down or restarting"  # how the refusal begins


class ServerDrainingError(RuntimeError):
    """The server finishes the requests it has and takes no new ones."""

    def __init__(self) -> None:
        super().__init__(f"{DRAINING}: it finishes its requests and takes no new ones")


def refuse_while_draining() -> None:
    """Raise ServerDrainingError while the launcher drains the server."""
    path = os.environ.get(DRAIN_FILE_VARIABLE)
    if path and os.path.exists(path):
        raise ServerDrainingError
