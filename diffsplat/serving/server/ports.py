"""Ports for the server."""

import contextlib
import socket
from collections.abc import Mapping

from diffsplat.serving.errors import ServerStartError

LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = "0.0.0.0"


def choose_ports(
    asked: Mapping[str, int], address: str = LOOPBACK, addresses: Mapping[str, str] | None = None
) -> dict[str, int]:
    """The ports asked for, with a free one in place of each 0; ServerStartError names a port that is in use.

    All are on `address`, but for those whose name has another one in `addresses`.
    """
    chosen = {}
    everywhere = address
    with contextlib.ExitStack() as held:  # all at once, so that no free port is given out twice
        for name, port in asked.items():
            address = (addresses or {}).get(name, everywhere)
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except (OSError, OverflowError) as error:
                in_use = isinstance(error, OSError) and error.errno == 98
                reason = "is in use" if in_use else f"cannot be used ({error})"
                raise ServerStartError(
                    f"port {port} for {name} on {address} {reason}: choose another one, or 0 for a free one"
                ) from None
            chosen[name] = probe.getsockname()[1]
    return chosen


def reached_at(address: str) -> str:
    """Where this machine reaches what listens on `address`."""
    return LOOPBACK if address == EVERY_ADDRESS else address


def accepts_connections(port: int, address: str = LOOPBACK) -> bool:
    """Whether something listens on this port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0
