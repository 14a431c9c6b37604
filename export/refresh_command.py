"""`python -m export refresh` and `python -m export rollback`."""

import argparse
import sys
from collections.abc import Callable

from diffsplat_client.commands.interrupts import leave_on_sigterm
from rich.console import Console

from diffsplat.backends.devices import DeviceError
from diffsplat.integrity import BundleError
from export.common import ExportError
from export.gates import PROMPTS, GateOptions
from export.progress import export_progress
from export.refresh import DEFAULT_KEEP, Refreshed, refresh, roll_back


def refresh_command(arguments: list[str]) -> int:
    """Parse, refresh, print; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m export refresh",
        description="Export a bundle as the next version of a repository. If it passes the gates, every `diffsplat "
        "serve` of the repository on this machine changes over to it: requests in flight finish on the old version.",
    )
    add = parser.add_argument
    add("bundle", help="folder of the bundle")
    add("repository", help="folder written by `python -m export`")
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="an object that the gates make; may be given several times (default: "
        + ", ".join(map(repr, PROMPTS))
        + ")",
    )
    add("--other-backbone", action="store_true", help="accept a bundle of another backbone than the served one")
    add(
        "--quality-command",
        metavar="COMMAND",
        help="one more gate: this must end with code 0; {bundle} stands for the bundle, as in "
        "'python -m benchmarks.quality {bundle} --quick'",
    )
    add("--keep", type=int, default=DEFAULT_KEEP, help="versions that stay in the repository (default: %(default)s)")
    options = parser.parse_args(arguments)
    gates = GateOptions(options.prompt or PROMPTS, options.other_backbone, options.quality_command)
    console = Console(stderr=True)

    def run(report: Callable[[str], None]) -> Refreshed:
        with export_progress(console) as show:
            return refresh(options.bundle, options.repository, gates, options.keep, show, report)

    return _run(run, console, options.repository)


def rollback_command(arguments: list[str]) -> int:
    """Parse, roll back, print; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m export rollback",
        description="Serve a version again that the repository still holds; servers change over as in `refresh`.",
    )
    parser.add_argument("repository", help="folder written by `python -m export`")
    parser.add_argument("--to", metavar="VERSION", help="which one (default: the newest before the served one)")
    options = parser.parse_args(arguments)
    return _run(
        lambda report: roll_back(options.repository, options.to, report), Console(stderr=True), options.repository
    )


def _run(action: Callable[[Callable[[str], None]], Refreshed], console: Console, repository: str) -> int:
    try:
        with leave_on_sigterm():
            done = action(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
    except (BundleError, DeviceError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; a server that has changed over already goes on by itself", file=sys.stderr)
        return 130
    if done.changed:
        print(f"{repository}: version {done.version} is served; `python -m export rollback` brings back {done.before}")
    else:
        print(f"{repository}: version {done.version} is served already")
    return 0
