"""How a server is told to take no new requests: the launcher creates a file, the first stages look for it."""

import os

DRAIN_FILE_VARIABLE = "DIFFSPLAT_DRAIN_FILE"  # environment variable of the server's processes: path of that file


class ServerDrainingError(RuntimeError):
    """The server finishes the requests it has and takes no new ones."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down or restarting: it finishes its requests and takes no new ones")


def refuse_while_draining() -> None:
    """Raise ServerDrainingError if the launcher wants no new requests."""
    path = os.environ.get(DRAIN_FILE_VARIABLE)
    if path and os.path.exists(path):
        raise ServerDrainingError
