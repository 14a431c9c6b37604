"""`diffsplat generate [PROMPT]`: a progress bar, a table of stage times, and the files under OUT/<slug>/.

With many prompts or pictures: a line and a folder for each, and exit code 1 when one has failed.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from diffsplat_client.client import DEFAULT_TIMEOUT_S, DEFAULT_URL, Client
from diffsplat_client.commands.artifacts import VIDEOS, check_tools, write_artifacts
from diffsplat_client.commands.jobs import Job, add_sources, is_batch, jobs_of
from diffsplat_client.errors import DiffSplatError, InvalidRequestError
from diffsplat_client.events import Finished, Progress, Queued
from diffsplat_client.generation import Generation
from diffsplat_client.poses import DEFAULT_DISTANCE, OWN_ELEVATION, four_views, turntable
from diffsplat_client.request import FILES, OPTIONS, GenerationRequest
from diffsplat_client.request_checks import MAX_FRAMES

STAGES = ("encode", "queued", "denoise", "decode", "rasterize", "package", "total")
FILM_FRAMES = 48  # of one turn
_NOT_OPTIONS = ("prompt", "frame_poses", *FILES)
_SYNONYMS = {"frame_size": ("--render-size",)}


def add_command(commands: Any) -> None:
    """Add the parser of `generate`; the options of a request come from its field table."""
    parser = commands.add_parser("generate", help="make objects from prompts or pictures")
    add_sources(parser)
    parser.add_argument("--url", default=DEFAULT_URL, help="HOST:PORT of the server's gRPC port (default: %(default)s)")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("out"),
        help="files go to a folder in this one, named after prompt and picture",
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
        help="write viewer.html, or leave it out (default: write)",
    )
    for name, field in OPTIONS.items():
        if name in _NOT_OPTIONS:
            continue
        flags, text = (f"--{name.replace('_', '-')}", *_SYNONYMS.get(name, ())), field.metadata["help"]
        if isinstance(field.default, bool):
            parser.add_argument(*flags, action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        limits = field.metadata["limits"]
        if limits and limits[1] < 1e9:
            text += f" ({limits[0]:g} .. {limits[1]:g})"
        if choices := field.metadata["choices"]:
            text += f" ({', '.join(choices)})"
        kind = int if field.metadata["integer"] else float if limits else str
        parser.add_argument(*flags, type=kind, default=argparse.SUPPRESS, metavar=kind.__name__.upper(), help=text)
    parser.set_defaults(run=run)


def request_from(args: argparse.Namespace, prompt: str, pictures: dict[str, bytes]) -> GenerationRequest:
    """The request for one object: the four views first, then the film."""
    options: dict[str, Any] = {
        name: getattr(args, name) for name in OPTIONS if name in args and name not in _NOT_OPTIONS
    }
    # frames look from where the views are generated: at that distance, and at an elevation that the server may choose
    elevation_deg = options.get("elevation_deg", OWN_ELEVATION)
    distance = options.setdefault("distance", DEFAULT_DISTANCE)
    poses = four_views(elevation_deg, distance)
    grow = args.video.startswith("fancy")
    frames = args.turntable_frames
    if frames is None:
        frames = 2 * FILM_FRAMES if grow else FILM_FRAMES
    if not 0 <= frames <= MAX_FRAMES - len(poses):
        raise InvalidRequestError(f"turntable_frames = {frames}: must be in 0 .. {MAX_FRAMES - len(poses)}")
    if frames:
        poses = np.concatenate((poses, turntable(frames, elevation_deg, distance, grow)))
    return GenerationRequest(prompt, frame_poses=poses, **(options | pictures))


def run(args: argparse.Namespace) -> int:
    """Generate, write, report."""
    jobs = jobs_of(args)
    first, batch = jobs[0], is_batch(args)
    if batch:  # what every object would fail by is told before the first
        request = request_from(args, "any", {first.field: b"any"} if first.field else {}).validate()
    else:
        request = request_from(args, first.prompt, first.pictures()).validate()
    check_tools(args.viewer, film=args.turntable_frames != 0 and args.video.endswith("mp4"))
    args.out.mkdir(parents=True, exist_ok=True)
    with _leave_on_sigterm(), Client(args.url, timeout_s=args.timeout_s) as client:
        if batch:
            return make_all(args, client, jobs)
        report(*make(args, client, request, first.folder))
    return 0


def make(
    args: argparse.Namespace, client: Client, request: GenerationRequest, folder_name: str, label: str = ""
) -> tuple[Generation, list[Path]]:
    """Generate one object and write its files; returns their paths."""
    # everything is written in a folder of its own, which goes in any case; whole files move from there
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=args.out) as staging:
        generation = follow(client, request, label)
        names = write_artifacts(generation, client.server_parameters, Path(staging), args.viewer, args.video)
        folder = args.out / folder_name
        folder.mkdir(exist_ok=True)
        for name in names:
            os.replace(Path(staging, name), folder / name)
    return generation, [folder / name for name in names]


def make_all(args: argparse.Namespace, client: Client, jobs: list[Job]) -> int:
    """One object after the other, going on after a failure; exit code 1 when there was one."""
    failed = []
    for number, job in enumerate(jobs, 1):
        label = f"[{number}/{len(jobs)}] "
        try:
            request = request_from(args, job.prompt, job.pictures()).validate()
            generation, _ = make(args, client, request, job.folder, label)
        except (DiffSplatError, OSError) as error:
            failed.append(job.folder)
            print(f"diffsplat: {label}{job.folder}: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        for warning in generation.warnings:
            print(f"warning: {label}{job.folder}: {warning}", file=sys.stderr)
        seconds = generation.timings_ms["total"] / 1e3
        about = f"{len(generation.cloud)} splats, seed {generation.seed}, {seconds:.1f} s"
        print(f"{label}{args.out / job.folder}: {about}", flush=True)
    if failed:
        print(f"diffsplat: {len(failed)} of {len(jobs)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def follow(client: Client, request: GenerationRequest, label: str = "") -> Generation:
    """Generate one object behind a progress bar on stderr, in front of which `label` stands."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as ProgressBar

    columns = (
        TextColumn("{task.fields[label]}{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # the bar goes at the end: a failure is one line, a success the table
    console = Console(stderr=True)
    bar = ProgressBar(*columns, console=console, transient=True)
    with client.stream(request) as events, bar if console.is_interactive else nullcontext():
        task = bar.add_task("sent", total=None, left="", label=label)
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
