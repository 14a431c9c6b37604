"""The command line of the export room.

python -m export BUNDLE --out DIR                          bundle -> served repository
python -m export import --backbone sd15 SOURCE OUT         official checkpoints -> bundle
python -m export models FOLDER ...                         list bundles and served repositories
python -m export upgrade BUNDLE                            bring a bundle of an older version up to date
"""

import argparse
import sys

from diffsplat_client.commands.interrupts import leave_on_sigterm
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffsplat.bundle import upgrade_bundle
from diffsplat.export_record import GraphRecord
from diffsplat.graph import Backend
from diffsplat.integrity import BundleError
from export.common import ExportError
from export.repository import RepositoryExport, export_repository

TIMED: tuple[Backend, ...] = ("onnxruntime", "torch")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A bundle in a folder called like a command is given as ./import."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["import"]:
        try:
            from export.importing.command import import_command  # here, because it imports networks
        except KeyboardInterrupt:  # the import takes seconds
            return 130
        return import_command(arguments[1:])
    if arguments[:1] == ["models"]:
        return _list_models(arguments[1:])
    if arguments[:1] == ["upgrade"]:
        return _upgrade(arguments[1:])
    return _export(arguments)


def _list_models(arguments: list[str]) -> int:
    from diffsplat.catalogue import add_arguments

    parser = argparse.ArgumentParser(prog="python -m export models", description="List bundles and exports.")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    return int(options.run(options))


def _upgrade(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export upgrade", description="Verify a bundle of an older version and bring it up to date."
    )
    parser.add_argument("bundle", help="folder of the bundle")
    options = parser.parse_args(arguments)
    try:
        changed = upgrade_bundle(options.bundle)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.bundle}: {'upgraded' if changed else 'is up to date, nothing to do'}")
    return 0


def _export(arguments: list[str]) -> int:
    """Parse, export, print."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Bundle -> served Triton model repository.",
        epilog="Other commands: `import --help`, official checkpoints -> bundle; `models --help`, list models; "
        "`upgrade --help`, bring an older bundle up to date.",
    )
    parser.add_argument("bundle", help="folder of the bundle, such as bundles/pico")
    parser.add_argument("--out", required=True, help="folder of the model repository to write")
    parser.add_argument(
        "--runtime",
        choices=("auto", "onnxruntime", "torch"),
        default="auto",
        help="back end of all graphs; auto (default) measures both and takes the faster one for each graph",
    )
    parser.add_argument("--force", action="store_true", help="export even if DIR is up to date")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        with leave_on_sigterm():  # SIGTERM cleans up like Ctrl-C
            result = _export_with_progress(options, console)
    except (BundleError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; partial output was removed", file=sys.stderr)
        return 130
    console.print(_table(result.graphs))
    console.print(f"{result.folder}: {'written' if result.changed else 'up to date, nothing to do'}", soft_wrap=True)
    return 0


def _export_with_progress(options: argparse.Namespace, console: Console) -> RepositoryExport:
    columns = (TextColumn("{task.description:28}"), BarColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("reading the bundle", total=None)

        def show(text: str, done: int, total: int) -> None:
            display.update(task, description=text, completed=done, total=total)

        return export_repository(options.bundle, options.out, options.runtime, options.force, show)


def _table(graphs: dict[str, GraphRecord]) -> Table:
    table = Table("graph", "run by", "MB", "error", "ORT ms", "torch ms")
    for name, graph in graphs.items():
        megabytes = sum(file["bytes"] for file in graph.files.values()) / 1e6
        error = "-" if graph.parity is None else f"{graph.parity:.1e}"
        times = (f"{graph.ms[backend]:.2f}" if backend in graph.ms else "-" for backend in TIMED)
        table.add_row(name, graph.backend, f"{megabytes:.2f}", error, *times)
    return table


if __name__ == "__main__":
    sys.exit(main())
