"""The command line of the export room.

python -m export BUNDLE --out DIR                          bundle -> served repository
python -m export refresh BUNDLE DIR                        bundle -> next version of a served repository
python -m export rollback DIR                              serve the version before again
python -m export engines BUNDLE                            bundle or repository -> TensorRT engines in a cache
python -m export import --backbone sd15 SOURCE OUT         official checkpoints -> bundle
python -m export models FOLDER ...                         list bundles and served repositories
python -m export upgrade BUNDLE                            bring a bundle of an older version up to date
"""

import argparse
import sys
from typing import get_args

from diffsplat_client.commands.interrupts import leave_on_sigterm
from rich.console import Console
from rich.table import Table

from diffsplat.backends.devices import DeviceError
from diffsplat.bundle import upgrade_bundle
from diffsplat.export_record import Candidate, GraphRecord
from diffsplat.graph import Backend, Precision
from diffsplat.integrity import BundleError
from export.common import ExportError
from export.progress import export_progress
from export.repository import RepositoryExport, export_repository


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A bundle in a folder called like a command is given as ./import."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["import"]:
        try:
            from export.importing.command import import_command  # here, because it imports networks
        except KeyboardInterrupt:  # the import takes seconds
            return 130
        return import_command(arguments[1:])
    if arguments[:1] == ["engines"]:
        try:
            from export.engines.command import engines_command  # likewise
        except KeyboardInterrupt:
            return 130
        return engines_command(arguments[1:])
    if arguments[:1] in (["refresh"], ["rollback"]):
        from export.refresh_command import refresh_command, rollback_command

        return (refresh_command if arguments[0] == "refresh" else rollback_command)(arguments[1:])
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


def export_parser() -> argparse.ArgumentParser:
    """The command line of an export."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Bundle -> served Triton model repository.",
        epilog="Other commands: `refresh --help`, `rollback --help`, versions of a served repository; "
        "`engines --help`, TensorRT engines ahead of time; `import --help`, official "
        "checkpoints -> bundle; `models --help`, list models; `upgrade --help`, bring an older bundle up to date.",
    )
    parser.add_argument("bundle", help="folder of the bundle, such as bundles/pico")
    parser.add_argument("--out", required=True, help="folder of the model repository to write")
    parser.add_argument(
        "--device", default="cpu", metavar="cpu|cuda[:N]", help="what the repository is built for (default: cpu)"
    )
    parser.add_argument(
        "--precision",
        choices=("auto", *get_args(Precision)),
        default="fp32",
        help="what graphs compute in, except those that must stay in float32 (default: fp32); auto lets fp32 and bf16 "
        "compete",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "all", *get_args(Backend)),
        default="auto",
        help="back end of all graphs; auto (default) measures those that build within seconds and takes the fastest "
        "for each graph, all also tries the others",
    )
    parser.add_argument("--force", action="store_true", help="export even if DIR is up to date")
    return parser


def _export(arguments: list[str]) -> int:
    """Parse, export, print."""
    options = export_parser().parse_args(arguments)
    console = Console()
    try:
        with leave_on_sigterm():  # SIGTERM cleans up like Ctrl-C
            result = _export_with_progress(options, console)
    except (BundleError, DeviceError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; partial output was removed", file=sys.stderr)
        return 130
    console.print(_table(result.graphs))
    for line in _refusals(result.graphs):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{result.folder}: {'written' if result.changed else 'up to date, nothing to do'}", soft_wrap=True)
    return 0


def _export_with_progress(options: argparse.Namespace, console: Console) -> RepositoryExport:
    with export_progress(console) as show:
        return export_repository(
            *(options.bundle, options.out, options.backend, options.device, options.precision, options.force, show)
        )


def _table(graphs: dict[str, GraphRecord]) -> Table:
    """Every candidate of every graph; the chosen one is marked."""
    table = Table("graph", "", "back end", "device", "precision", "error", "ms", "MB")
    for name, graph in graphs.items():
        for candidate in sorted(graph.candidates, key=lambda each: each != graph.chosen):
            chosen = candidate == graph.chosen
            mark = "chosen" if chosen else "refused" if candidate.refused else ""
            table.add_row(
                *(name if chosen else "", mark, candidate.backend, candidate.device, candidate.precision),
                *_figures(candidate),
            )
    return table


def _figures(candidate: Candidate) -> tuple[str, str, str]:
    error, ms, megabytes = candidate.error, candidate.ms, candidate.megabytes
    return (
        "-" if error is None else f"{error:.1e}",
        "-" if ms is None else f"{ms:.2f}",
        "-" if megabytes is None else f"{megabytes:.2f}",
    )


def _refusals(graphs: dict[str, GraphRecord]) -> list[str]:
    """Why candidates were refused, one line per reason."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for name, graph in graphs.items():
        for candidate in graph.candidates:
            if candidate.refused:
                names.setdefault((candidate.backend, candidate.precision, candidate.refused), []).append(name)
    return [
        f"refused: {backend} {precision} for {', '.join(of)}: {why}" for (backend, precision, why), of in names.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
