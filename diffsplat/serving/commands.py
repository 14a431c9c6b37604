"""`diffsplat serve` and `diffsplat demo`: entry points of the group `diffsplat_client.commands`."""

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from diffsplat.serving.server import TritonServer
from diffsplat.serving.wheel import ServerStartError


def serve_command(subparsers: Any) -> None:
    """Add the command to the client's command line (entry point `diffsplat_client.commands`)."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve", help="serve an exported repository on this machine until Ctrl-C", description=serve_command.__doc__
    )
    parser.description = "Serve an exported repository on 127.0.0.1 until Ctrl-C."
    parser.add_argument("repository", type=Path, help="folder written by `python -m export`")
    parser.add_argument("--grpc-port", type=int, default=8001, help="default 8001; 0 takes a free one")
    parser.add_argument("--http-port", type=int, help="serve HTTP as well; 0 takes a free port (default: no HTTP)")
    parser.add_argument("--metrics-port", type=int, default=8002, help="default 8002; 0 takes a free one")
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    ended = threading.Event()
    signal.signal(signal.SIGTERM, raise_interrupt)
    try:
        with TritonServer(
            arguments.repository,
            grpc_port=arguments.grpc_port,
            http_port=arguments.http_port,
            metrics_port=arguments.metrics_port,
            on_progress=lambda line: print(f"  {line}", flush=True),
        ) as server:
            http = f"   HTTP {server.http_url}" if server.http_url else ""
            print(f"gRPC {server.grpc_url}{http}   metrics {server.metrics_url}")
            print(f"log {server.log_path}\nCtrl-C stops the server", flush=True)
            while server.running:
                ended.wait(0.5)
            raise ServerStartError(f"the Triton server ended by itself:\n{server.why_it_failed()}")
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0
    except ServerStartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def raise_interrupt(number: int, frame: object) -> None:
    """Signal handler: SIGTERM leaves `with TritonServer` blocks as Ctrl-C does."""
    raise KeyboardInterrupt


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
    status = console.status("starting the server")
    server = TritonServer(arguments.repository, on_progress=lambda line: status.update(f"starting the server: {line}"))
    try:
        with status:
            server.start()
        console.print(f"server ready at {server.grpc_url} (loopback, for this request only)", highlight=False)
        return cli.main(["generate", arguments.prompt, "--url", server.grpc_url, "--out", str(arguments.out)])
    except ServerStartError as error:
        console.print(f"error: {error}", markup=False, highlight=False)
        return 1
    finally:
        server.stop()
