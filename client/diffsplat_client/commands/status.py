"""`diffsplat status`: whether every stage of a server answers, what it serves, and which contract version it speaks."""

import argparse
from typing import Any

from diffsplat_client.commands.server import add_server_arguments, client_of
from diffsplat_client.contract import CONTRACT_VERSION
from diffsplat_client.time_limits import CONNECT_TIMEOUT_S


def add_command(commands: Any) -> None:
    """Add the parser of `status`."""
    parser = commands.add_parser("status", help="probe every stage of a server; show what it serves")
    add_server_arguments(parser)
    parser.add_argument(
        "--timeout",
        type=float,
        default=CONNECT_TIMEOUT_S,
        metavar="SECONDS",
        help="a stage that does not answer a probe for this long counts as down (default: %(default)g)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it; exit code 0 when the server would take a request: every stage answers, and the contract is ours."""
    with client_of(args) as client:
        status = client.status(args.timeout)
    print(f"{client.url}: {'ready' if status.ready else 'not ready'}")
    match = status.contract_version == CONTRACT_VERSION
    version = "unknown" if status.contract_version is None else status.contract_version
    print(f"contract: {version}" + ("" if match else f" (this client speaks {CONTRACT_VERSION})"))
    for name, value in sorted(status.parameters.items()):
        if name != "contract_version":
            print(f"{name}: {value}")
    for model in sorted(status.models):
        reason = f" ({' '.join(model.reason.split())})" if model.reason else ""
        print(f"  {model.name:<12} {'version ' + model.version if model.version else '':<11} {model.state}{reason}")
    return 0 if status.ready and match else 1
