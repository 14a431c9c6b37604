"""Options of every command that talks to a server, and the client that they describe."""

import argparse
from pathlib import Path
from typing import Any

from diffsplat_client.client import Client
from diffsplat_client.connection import DEFAULT_URL, TOKEN_VARIABLE
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.time_limits import DEFAULT_TIMEOUT_S


def add_server_arguments(parser: Any) -> None:
    """Add address, token and certificates."""
    parser.add_argument("--url", default=DEFAULT_URL, help="HOST:PORT of the server's gRPC port (default: %(default)s)")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help=f"file with the token by which the server knows this client (default: the token in {TOKEN_VARIABLE})",
    )
    parser.add_argument("--tls", action="store_true", help="encrypt the connection; certificates imply it")
    parser.add_argument(
        "--ca-certificate", type=Path, metavar="PEM", help="authority of the server, if it is not one of the usual ones"
    )
    parser.add_argument(
        "--client-certificate",
        type=Path,
        nargs=2,
        metavar=("PEM", "KEY"),
        help="certificate and key of this client, for servers that ask for them",
    )


def client_of(args: argparse.Namespace, timeout_s: float = DEFAULT_TIMEOUT_S) -> Client:
    """The client for these options; InvalidRequestError when they are wrong."""
    return Client(
        args.url,
        timeout_s=timeout_s,
        token=None if args.token_file is None else _read_token(args.token_file),
        tls=args.tls or None,
        ca_certificate=args.ca_certificate,
        client_certificate=None if args.client_certificate is None else tuple(args.client_certificate),
    )


def _read_token(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise InvalidRequestError(f"token_file = {str(path)!r}: cannot be read as text") from None
