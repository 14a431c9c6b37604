"""`diffsplat demo PROMPT`: start a server, generate one object through the real client, stop the server."""

import argparse
import signal
from pathlib import Path
from typing import Any

from diffsplat.serving.server import ServerError, TritonServer, raise_interrupt


def demo_command(subparsers: Any) -> None:
    """Add the command to the client's command line (entry point `diffsplat_client.commands`)."""
    parser: argparse.ArgumentParser = subparsers.add_parser("demo", help="serve, generate one object, stop")
    parser.description = (
        "Start a server over an exported repository, generate one object as `diffsplat generate` does, stop."
    )
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--repository", type=Path, required=True, help="folder written by `python -m export`")
    parser.add_argument("-o", "--out", type=Path, default=Path("out"), help="results go to a folder of their own in it")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from diffsplat_client import cli
    from rich.console import Console

    signal.signal(signal.SIGTERM, raise_interrupt)
    console = Console(stderr=True)
    with console.status("starting the server") as status:
        server = TritonServer(
            arguments.repository, on_progress=lambda line: status.update(f"starting the server: {line}")
        )
        try:
            server.start()
        except ServerError as error:
            console.print(f"error: {error}", markup=False, highlight=False)
            return 1
    try:
        console.print(f"server ready at {server.grpc_url} (loopback, for this request only)", highlight=False)
        return cli.main(["generate", arguments.prompt, "--url", server.grpc_url, "--out", str(arguments.out)])
    finally:
        server.stop()
