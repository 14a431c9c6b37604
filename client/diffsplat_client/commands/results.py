"""Shared by the commands that make objects: options, film, files, the table of stage times."""

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffsplat_client.commands.artifacts import RESULT_FILES, VIDEOS
from diffsplat_client.commands.server import add_server_arguments
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.generation import Generation
from diffsplat_client.poses import turntable
from diffsplat_client.reconstruction import Reconstruction
from diffsplat_client.request import OPTIONS
from diffsplat_client.request_checks import MAX_FRAMES
from diffsplat_client.time_limits import DEFAULT_TIMEOUT_S

FILM_FRAMES = 48  # of one turn
_SYNONYMS = {"frame_size": ("--render-size",), "formats": ("--format",)}


def add_result_arguments(parser: Any) -> None:
    """Add options for server, folder, time limit and files."""
    add_server_arguments(parser)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("out"),
        help="files go to a folder in this one, named after the prompt and image or the file of views",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a result of the same name, instead of adding a number to the folder's name",
    )
    parser.add_argument(
        "--timeout-s", type=float, default=DEFAULT_TIMEOUT_S, help="seconds for one object (default: %(default)g)"
    )
    parser.add_argument(
        "--video",
        choices=VIDEOS,
        default=VIDEOS[0],
        help="kind of film; fancy: two turns, the splats grow during the first (default: %(default)s)",
    )
    parser.add_argument(
        "--turntable-frames",
        type=int,
        help=f"frames of the film, 0 for none (default: {FILM_FRAMES} a turn; the published films have 180)",
    )
    parser.add_argument(
        "--viewer",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to write viewer.html (default: write)",
    )


def add_options(parser: Any, names: Iterable[str]) -> None:
    """Add options of a request from its field table."""
    for name in names:
        field = OPTIONS[name]
        flags, text = (f"--{name.replace('_', '-')}", *_SYNONYMS.get(name, ())), field.metadata["help"]
        if isinstance(field.default, bool):
            parser.add_argument(*flags, action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        limits = field.metadata["limits"]
        if limits and limits[1] < 1e9:
            text += f" ({limits[0]:g} .. {limits[1]:g})"
        if choices := field.metadata["choices"]:
            text += f" ({', '.join(filter(None, choices))})"
        if field.metadata["several"]:
            text += "; separated by commas, or the option repeated"
            parser.add_argument(
                *flags, type=_words, action="extend", default=argparse.SUPPRESS, metavar="NAME[,NAME]", help=text
            )
            continue
        kind = int if field.metadata["integer"] else float if limits else str
        parser.add_argument(*flags, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=text)


def _words(text: str) -> list[str]:
    return text.split(",")


def with_film(args: argparse.Namespace, views: np.ndarray, elevation_deg: float, distance: float) -> np.ndarray:
    """Poses of the views [V, 4], then those of the requested film."""
    grow = args.video.startswith("fancy")
    frames = args.turntable_frames
    if frames is None:
        frames = 2 * FILM_FRAMES if grow else FILM_FRAMES
    if not 0 <= frames <= MAX_FRAMES - len(views):
        raise InvalidRequestError(f"turntable_frames = {frames}: must be in 0 .. {MAX_FRAMES - len(views)}")
    return np.concatenate((views, turntable(frames, elevation_deg, distance, grow))) if frames else views


def numbered(name: str) -> Iterator[str]:
    """The name, then name-2, name-3, ..."""
    yield name
    for number in itertools.count(2):
        yield f"{name}-{number}"


def move_files(staging: Path, names: list[str], folder: Path, overwrite: bool) -> list[Path]:
    """Move finished files into a folder; returns their new paths.

    Without `overwrite` the folder is always new: a number is added to its name if the name is taken.
    """
    if overwrite:
        folder.mkdir(exist_ok=True)
        for name in set(RESULT_FILES) - set(names):  # of the result that is replaced
            (folder / name).unlink(missing_ok=True)
    else:
        folder = _new_folder(folder)
    for name in names:
        os.replace(staging / name, folder / name)
    return [folder / name for name in names]


def _new_folder(folder: Path) -> Path:
    for name in numbered(folder.name):
        with contextlib.suppress(FileExistsError):
            folder.with_name(name).mkdir()
            return folder.with_name(name)
    raise AssertionError("there is a name for every number")


def warn_if_empty(made: Generation | Reconstruction, label: str = "") -> bool:
    """Print a warning prefixed with `label` and return True if no splat is above the asset's threshold."""
    if len(made.cloud):
        return False
    threshold = made.request.opacity_threshold_asset
    print(
        f"warning: {label}the result has 0 splats: none is more opaque than opacity_threshold_asset = {threshold:g}",
        file=sys.stderr,
    )
    return True


def print_result(timings_ms: Mapping[str, float], stages: Sequence[str], summary: str, paths: list[Path]) -> None:
    """Print stage times, known stages first, and file paths."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage")
    table.add_column("ms", justify="right")
    for stage in (*stages, *(name for name in timings_ms if name not in stages)):
        if stage in timings_ms:
            table.add_row(stage, f"{timings_ms[stage]:.1f}", end_section=stage == stages[-2])
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(summary, highlight=False)
    for path in paths:
        console.print(str(path), markup=False, highlight=False)
