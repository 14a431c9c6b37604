"""Ports on loopback for the server."""

import contextlib
import socket
from collections.abc import Mapping

from diffsplat.serving.wheel import ServerStartError

HOST = "127.0.0.1"


def choose_ports(asked: Mapping[str, int]) -> dict[str, int]:
    """The ports asked for, with a free one in place of each 0; ServerStartError names a port that is in use."""
    chosen = {}
    with contextlib.ExitStack() as held:  # all at once, so that no free port is given out twice
        for name, port in asked.items():
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except (OSError, OverflowError) as error:
                in_use = isinstance(error, OSError) and error.errno == 98
                reason = "is in use" if in_use else f"cannot be used ({error})"
                raise ServerStartError(
                    f"port {port} for {name} on {HOST} {reason}: choose another one, or 0 for a free one"
                ) from None
            chosen[name] = probe.getsockname()[1]
    return chosen


def accepts_connections(port: int) -> bool:
    """Whether something listens on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
