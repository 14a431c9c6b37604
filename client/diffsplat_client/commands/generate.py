"""`diffsplat generate PROMPT`: a progress bar, a table of stage times, and the files under OUT/<slug>/."""

import argparse
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from diffsplat_client.client import DEFAULT_TIMEOUT_S, DEFAULT_URL, Client
from diffsplat_client.commands.artifacts import check_tools, slug, write_artifacts
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.events import Finished, Progress, Queued
from diffsplat_client.generation import Generation
from diffsplat_client.poses import DEFAULT_DISTANCE, DEFAULT_ELEVATION_DEG, four_views, turntable
from diffsplat_client.request import OPTIONS, GenerationRequest
from diffsplat_client.request_checks import MAX_FRAMES

STAGES = ("encode", "queued", "denoise", "decode", "rasterize", "package", "total")
_NOT_OPTIONS = ("prompt", "frame_poses")


def add_command(commands: Any) -> None:
    """Add the parser of `generate`; the options of a request come from its field table."""
    parser = commands.add_parser("generate", help="make one object from a prompt")
    parser.add_argument("prompt", metavar="PROMPT")
    parser.add_argument("--url", default=DEFAULT_URL, help="HOST:PORT of the server's gRPC port (default: %(default)s)")
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("out"), help="files go to a folder named after the prompt in this one"
    )
    parser.add_argument(
        "--timeout-s", type=float, default=DEFAULT_TIMEOUT_S, help="seconds for everything (default: %(default)g)"
    )
    parser.add_argument(
        "--turntable-frames", type=int, default=48, help="frames of turntable.mp4, 0 for no film (default: %(default)s)"
    )
    parser.add_argument(
        "--viewer",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write viewer.html, or leave it out (default: write)",
    )
    for name, field in OPTIONS.items():
        if name in _NOT_OPTIONS:
            continue
        flag, text = f"--{name.replace('_', '-')}", field.metadata["help"]
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        limits = field.metadata["limits"]
        if limits and limits[1] < 1e9:
            text += f" ({limits[0]:g} .. {limits[1]:g})"
        if choices := field.metadata["choices"]:
            text += f" ({', '.join(choices)})"
        kind = int if field.metadata["integer"] else float if limits else str
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=text)
    parser.set_defaults(run=run)


def request_from(args: argparse.Namespace) -> GenerationRequest:
    """The request of a command line: the four views first, then the turntable."""
    options = {name: getattr(args, name) for name in OPTIONS if name not in _NOT_OPTIONS and hasattr(args, name)}
    # frames must look from where the views are generated, so these two are not left to the server
    elevation_deg = options.setdefault("elevation_deg", DEFAULT_ELEVATION_DEG)
    distance = options.setdefault("distance", DEFAULT_DISTANCE)
    poses = four_views(elevation_deg, distance)
    if not 0 <= args.turntable_frames <= MAX_FRAMES - len(poses):
        raise InvalidRequestError(
            f"turntable_frames = {args.turntable_frames}: must be in 0 .. {MAX_FRAMES - len(poses)}"
        )
    if args.turntable_frames:
        poses = np.concatenate((poses, turntable(args.turntable_frames, elevation_deg, distance)))
    return GenerationRequest(args.prompt, frame_poses=poses, **options)


def run(args: argparse.Namespace) -> int:
    """Generate, write, report."""
    request = request_from(args).validate()
    check_tools(args.viewer)
    args.out.mkdir(parents=True, exist_ok=True)
    # everything is written in a folder of its own, which goes in any case; whole files move from there
    with _leave_on_sigterm(), tempfile.TemporaryDirectory(prefix=".partial-", dir=args.out) as staging:
        with Client(args.url, timeout_s=args.timeout_s) as client:
            generation = follow(client, request)
        names = write_artifacts(generation, client.server_parameters, Path(staging), args.viewer)
        folder = args.out / slug(request.prompt)
        folder.mkdir(exist_ok=True)
        for name in names:
            os.replace(Path(staging, name), folder / name)
    report(generation, [folder / name for name in names])
    return 0


def follow(client: Client, request: GenerationRequest) -> Generation:
    """Generate one object behind a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as ProgressBar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # the bar goes at the end: a failure is one line, a success the table
    console = Console(stderr=True)
    bar = ProgressBar(*columns, console=console, transient=True)
    with client.stream(request) as events, bar if console.is_interactive else nullcontext():
        task = bar.add_task("sent", total=None, left="")
        for event in events:
            match event:
                case Queued(position=position):
                    bar.update(task, description=f"waiting, place {position}")
                case Progress(step=step, steps=steps, seconds_left=seconds):
                    left = "" if seconds is None else f"{seconds:.1f} s left"
                    phase = "denoising" if step < steps else "decoding"
                    bar.update(task, description=phase, completed=step, total=steps, left=left)
                case Finished(result=generation):
                    return generation
    raise AssertionError("a stream ends with Finished or raises")


def report(generation: Generation, paths: list[Path]) -> None:
    """Warnings, where the time went, and where the files are."""
    from rich.console import Console
    from rich.table import Table

    for warning in generation.warnings:
        Console(stderr=True).print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    table = Table("stage")
    table.add_column("ms", justify="right")
    for stage in (*STAGES, *(name for name in generation.timings_ms if name not in STAGES)):
        if stage in generation.timings_ms:
            table.add_row(stage, f"{generation.timings_ms[stage]:.1f}", end_section=stage == STAGES[-2])
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"{len(generation.cloud)} splats, seed {generation.seed}", highlight=False)
    for path in paths:
        console.print(str(path), markup=False, highlight=False)


@contextmanager
def _leave_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the request is stopped and temporary files go."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
