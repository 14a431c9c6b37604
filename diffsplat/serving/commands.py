"""`diffsplat serve` and `diffsplat demo`: entry points of the group `diffsplat_client.commands`."""

import argparse
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.repository.placement import AUTO
from diffsplat.serving.server.log import state_folder
from diffsplat.serving.server.ports import EVERY_ADDRESS, LOOPBACK
from diffsplat.serving.server.processes import machine_memory
from diffsplat.serving.server.server import TritonServer
from diffsplat.serving.supervisor.policy import MEMORY_SHARE, SupervisorPolicy
from diffsplat.serving.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from diffsplat.serving.edge.server import EdgeSettings
    from diffsplat.serving.edge.service import Service

DEFAULT_MAX_REQUESTS = 128
DEFAULT_MAX_REQUEST_BYTES = 64 * 2**20
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def serve_command(subparsers: Any) -> None:
    """Add the command to the client's command line (entry point `diffsplat_client.commands`)."""
    parser: argparse.ArgumentParser = subparsers.add_parser("serve", help="serve an exported repository until Ctrl-C")
    parser.description = (
        "Serve an exported repository until Ctrl-C, and restart the server when it or one of its models dies or hangs."
    )
    add = parser.add_argument
    add("repository", type=Path, help="folder written by `python -m export`")
    add("--grpc-port", type=int, default=8001, help="default 8001; 0 takes a free one")
    add(
        "--http-port",
        type=int,
        help="serve HTTP as well; 0 takes a free port (default: no HTTP). With --no-edge it is Triton's own",
    )
    add("--metrics-port", type=int, default=8002, help="default 8002; 0 takes a free one")
    add(
        "--device",
        default=AUTO,
        metavar="auto|cpu|cuda:N",
        help="what to serve on (default: auto, the kind of device that the repository was exported for)",
    )
    add("--address", default=LOOPBACK, help="IPv4 address to listen on (default: %(default)s)")
    add(
        "--tritonserver",
        type=Path,
        metavar="FOLDER",
        help="run the Triton server installed here, such as /opt/tritonserver of an NGC container (default: the one of "
        "the nvidia-pytriton wheel)",
    )
    add(
        "--drain-timeout",
        type=_seconds,
        default=SupervisorPolicy.drain_timeout_s,
        metavar="SECONDS",
        help="how long requests in flight may take to finish after Ctrl-C or SIGTERM (default: %(default)g)",
    )
    add(
        "--memory-limit",
        type=_memory,
        default=int(MEMORY_SHARE * machine_memory()),
        metavar="SIZE",
        help="restart the server when it is idle and takes more than this, such as 12G "
        f"(default: {MEMORY_SHARE:.0%} of this machine's memory)".replace("%", "%%"),
    )
    _add_edge_options(parser)
    add("--log-folder", type=Path, help="where logs are kept (default: ~/.local/state/diffsplat/NAME-PORT)")
    parser.set_defaults(run=_serve)


def _add_edge_options(parser: argparse.ArgumentParser) -> None:
    """How the edge treats clients; see docs/edge.md."""
    group = parser.add_argument_group("the edge")
    options: list[argparse.Action] = []

    def add(*names: str, **settings: Any) -> None:
        options.append(group.add_argument(*names, **settings))

    group.add_argument(
        "--no-edge",
        action="store_true",
        help="let clients reach Triton itself, which malformed requests crash and vanished clients do not stop",
    )
    add("--tokens", type=Path, metavar="FILE", help="clients need a token; lines of NAME and the token's SHA-256")
    add("--tls-certificate", type=Path, metavar="PEM", help="encrypt connections; with --tls-key")
    add("--tls-key", type=Path, metavar="PEM", help="of that certificate")
    add("--tls-client-ca", type=Path, metavar="PEM", help="clients need a certificate of this authority")
    add(
        "--max-requests-per-client",
        type=_count,
        default=DEFAULT_MAX_REQUESTS,
        metavar="N",
        help="running at a time (default: %(default)s)",
    )
    add(
        "--max-request-size",
        type=_memory,
        default=DEFAULT_MAX_REQUEST_BYTES,
        metavar="SIZE",
        help=f"of one message, images included (default: {DEFAULT_MAX_REQUEST_BYTES // 2**20}M)",
    )
    add(
        "--edge-metrics-port",
        type=int,
        metavar="PORT",
        help="of the edge's own metrics (default: one above --metrics-port; 0 takes a free one)",
    )
    add(
        "--traces",
        metavar="URL",
        help="send a trace of every request to an OpenTelemetry collector, by OTLP over gRPC; such as "
        "http://localhost:4317 (default: none; needs the extra `traces`)",
    )
    add("--log-prompts", action="store_true", help="write prompts to the log of requests, requests.jsonl, and to spans")
    parser.set_defaults(edge_options=options)


def _serve(arguments: argparse.Namespace) -> int:
    stop, hurry = _stop_signals()
    folder = arguments.log_folder or state_folder() / f"{arguments.repository.absolute().name}-{arguments.grpc_port}"
    options: dict[str, Any] = {
        "grpc_port": arguments.grpc_port,
        "http_port": arguments.http_port,
        "metrics_port": arguments.metrics_port,
        "address": arguments.address,
        "tritonserver": arguments.tritonserver and arguments.tritonserver.absolute(),
        "device": arguments.device,
        "log_folder": folder,
        "policy": SupervisorPolicy(drain_timeout_s=arguments.drain_timeout, memory_limit_bytes=arguments.memory_limit),
        "on_event": lambda line: print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True),
        "on_progress": lambda line: print(f"  {line}", flush=True),
        "abort": stop,
    }
    try:
        with _make_service(arguments, options) as service:
            supervisor = service if isinstance(service, Supervisor) else service.supervisor
            edge = "" if isinstance(service, Supervisor) else f"   edge's metrics {service.edge.metrics_url}"
            http = f"   HTTP {service.http_url}" if service.http_url else ""
            if arguments.address == EVERY_ADDRESS:
                print("listening on every address; on this machine:")
            print(f"gRPC {service.grpc_url}{http}   metrics {supervisor.server.metrics_url}{edge}")
            print(f"logs {folder}\nCtrl-C stops the server", flush=True)
            stop.wait()
            print("finishing the requests in flight; Ctrl-C again stops at once", flush=True)
            if not service.drain(give_up=hurry):
                print("requests were still in flight", flush=True)
    except ServerStartError as error:
        if not stop.is_set():
            print(f"error: {error}", file=sys.stderr)
            return 1
    print("stopped", flush=True)
    return 0


def _make_service(arguments: argparse.Namespace, options: dict[str, Any]) -> "Service | Supervisor":
    if arguments.no_edge:
        for option in arguments.edge_options:
            if getattr(arguments, option.dest) != option.default:
                raise ServerStartError(f"{option.option_strings[0]}: for the edge, which --no-edge leaves out")
        return Supervisor(arguments.repository, **options)
    from diffsplat.serving.edge.service import Service  # loads grpc

    port = arguments.edge_metrics_port
    if port is None:
        port = arguments.metrics_port and arguments.metrics_port + 1
    settings = _edge_settings(arguments, options["log_folder"])
    return Service(arguments.repository, edge_metrics_port=port, settings=settings, **options)


def _edge_settings(arguments: argparse.Namespace, log_folder: Path) -> "EdgeSettings":
    from diffsplat.serving.edge.clients import ClientLimits
    from diffsplat.serving.edge.server import EdgeSettings
    from diffsplat.serving.edge.tls import TlsFiles

    certificate, key, client_ca = arguments.tls_certificate, arguments.tls_key, arguments.tls_client_ca
    if (certificate is None) != (key is None) or (client_ca is not None and certificate is None):
        raise ServerStartError("--tls-certificate and --tls-key go together, and --tls-client-ca needs both")
    return EdgeSettings(
        limits=ClientLimits(
            max_requests=arguments.max_requests_per_client, max_request_bytes=arguments.max_request_size
        ),
        tls=None if certificate is None else TlsFiles(certificate, key, client_ca),
        tokens=arguments.tokens,
        request_log=log_folder / "requests.jsonl",
        log_prompts=arguments.log_prompts,
        traces=arguments.traces,
    )


def _stop_signals() -> tuple[threading.Event, threading.Event]:
    """Events set by the first, and by the second, Ctrl-C, SIGTERM or SIGHUP."""
    first, second = threading.Event(), threading.Event()

    def stop(number: int, frame: object) -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means: go on
            signal.signal(number, stop)
    return first, second


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _memory(text: str) -> int:
    """Bytes of a size such as 800M or 12G."""
    number, unit = (text[:-1], _UNITS[text[-1].upper()]) if text[-1:].upper() in _UNITS else (text, 1)
    size = float(number) * unit
    if not 0 < size < float("inf"):
        raise ValueError
    return int(size)


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
