"""`python -m export engines BUNDLE_OR_REPOSITORY`: TensorRT engines of all graphs, built ahead into the cache.

An export for a card finds them there (`python -m export BUNDLE --device cuda --backend tensorrt`), if version, compute
capability, precision and profiles are the same.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import get_args

from diffsplat_client.commands.interrupts import leave_on_sigterm
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffsplat.backends.devices import DeviceError
from diffsplat.graph import Precision
from diffsplat.integrity import BundleError
from diffsplat.serving.engine.policy import EnginePolicy
from export.common import ExportError, ProgressCallback
from export.engines.cache import FOLDER_VARIABLE, EngineCache, default_folder
from export.engines.profiles import Limits
from export.engines.source import open_source
from export.engines.tensorrt import BuiltEngine, build_engine, find_target


def engines_command(arguments: list[str]) -> int:
    """Parse, build, print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m export engines", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="BUNDLE_OR_REPOSITORY", help="folder of a bundle or of an export")
    parser.add_argument(
        *("--precision",),
        choices=get_args(Precision),
        default="bf16",
        help="what graphs compute in, except those that must stay in float32 (default: bf16)",
    )
    parser.add_argument(
        *("--compute-capability",),
        action="append",
        default=[],
        metavar="X.Y",
        help="card to build for, such as 8.9; may be repeated. Default: this machine's card, or without one all that "
        "TensorRT-RTX builds for",
    )
    parser.add_argument("--graph", action="append", default=[], metavar="NAME", help="only this graph; may be repeated")
    parser.add_argument(
        *("--max-batch",),
        type=int,
        default=EnginePolicy.max_batch,
        help="max_batch of denoise/config.pbtxt: engines take up to twice as many rows (default: %(default)s)",
    )
    parser.add_argument(
        *("--cache",), type=Path, help=f"folder of the engines (default: ${FOLDER_VARIABLE}, or {default_folder()})"
    )
    options = parser.parse_args(arguments)
    console = Console()
    try:
        with leave_on_sigterm():
            engines = _build(options, console)
    except (BundleError, DeviceError, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:  # of Limits
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted; finished engines are kept, the one being built was removed", file=sys.stderr)
        return 130
    console.print(_table(engines))
    return 0


def build_engines(
    folder: Path,
    precision: Precision,
    capabilities: list[str],
    cache: EngineCache,
    max_batch: int = EnginePolicy.max_batch,
    only: list[str] | None = None,
    progress: ProgressCallback = lambda text, done, total: None,
) -> list[BuiltEngine]:
    """Engines of the graphs of a bundle or repository.

    Args:
        folder: the bundle or the repository.
        precision: what graphs compute in, except those that must stay in float32.
        capabilities: see `find_target`.
        cache: where the engines are kept.
        max_batch: see `Limits`.
        only: names of graphs; None or empty: all.
        progress: called often, with thousandths of a graph.

    Raises:
        BundleError: the bundle or repository is missing or damaged.
        ExportError: a name is not a graph's, or an engine cannot be built; the message names the graph.
    """
    source = open_source(folder)
    if unknown := set(only or ()) - set(source.graphs):
        raise ExportError(f"{folder}: has no graph {sorted(unknown)[0]!r}, only {', '.join(source.graphs)}")
    limits = Limits(max_batch, source.spec.steps)
    names = only or list(source.graphs)
    target = find_target(capabilities, precision, names[0])
    engines = []
    for index, name in enumerate(names):

        def report(text: str, part: float, name: str = name, index: int = index) -> None:
            progress(f"{name}: {text}", round(1000 * (index + part)), 1000 * len(names))

        report("writing", 0)
        with tempfile.TemporaryDirectory(prefix="diffsplat-onnx-") as temporary:
            files, has = source.onnx(name, precision, Path(temporary))
            building = partial(report, "building")
            engines.append(build_engine(source.graphs[name], files, has, target, limits, cache, building))
    progress("done", 1000 * len(names), 1000 * len(names))
    return engines


def _build(options: argparse.Namespace, console: Console) -> list[BuiltEngine]:
    columns = (TextColumn("{task.description:32}"), BarColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("reading", total=None)
        shown = time.monotonic()

        def show(text: str, done: int, total: int) -> None:
            nonlocal shown
            if time.monotonic() - shown > 0.1:  # a build reports thousands of times
                shown = time.monotonic()
                display.update(task, description=text, completed=done, total=total)

        cache = EngineCache(options.cache or default_folder())
        return build_engines(
            *(options.source, options.precision, options.compute_capability, cache, options.max_batch),
            *(options.graph, show),
        )


def _table(engines: list[BuiltEngine]) -> Table:
    table = Table("graph", "precision", "for", "profiles", "layers", "MB", "seconds", "")
    for engine in engines:
        info = engine.info
        table.add_row(
            *(info.graph, info.precision, f"{info.module} {', '.join(info.capabilities)}", str(len(info.profiles))),
            *(f"{info.layers:,}", f"{info.file['bytes'] / 1e6:.1f}", f"{info.build_s:.1f}"),
            "built" if engine.new else "was there",
        )
    return table
