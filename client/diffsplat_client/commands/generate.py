"""`diffsplat generate [PROMPT]`: a progress bar, a table of stage times, and files in OUT/<slug>/.

With several prompts or images: one line and one folder each, and exit code 1 if any failed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from diffsplat_client.client import Client
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.commands.artifacts import check_tools, write_artifacts
from diffsplat_client.commands.interrupts import leave_on_sigterm
from diffsplat_client.commands.jobs import Job, add_sources, is_batch, jobs_of
from diffsplat_client.commands.results import (
    add_options,
    add_result_arguments,
    move_files,
    print_result,
    warn_if_empty,
    with_film,
)
from diffsplat_client.commands.server import client_of
from diffsplat_client.errors import DiffSplatError
from diffsplat_client.events import Finished, Preview, Progress, Queued
from diffsplat_client.formats.ply import write_ply
from diffsplat_client.generation import Generation
from diffsplat_client.poses import DEFAULT_DISTANCE, OWN_ELEVATION, four_views
from diffsplat_client.request import FILES, OPTIONS, GenerationRequest

STAGES = ("encode", "queued", "denoise", "decode", "rasterize", "package", "total")
PREVIEW_EVERY = 5  # steps
_NOT_OPTIONS = ("prompt", "frame_poses", *FILES)


def add_command(commands: Any) -> None:
    """Add the parser of `generate`; the options of a request come from its field table."""
    parser = commands.add_parser("generate", help="make objects from prompts or images")
    add_sources(parser)
    add_result_arguments(parser)
    add_options(parser, (name for name in OPTIONS if name not in _NOT_OPTIONS))
    parser.add_argument(
        "--previews",
        type=Path,
        metavar="DIR",
        help=f"write each preview to DIR, as NAME-STEP.ply (--preview-every is then {PREVIEW_EVERY}, if not given)",
    )
    parser.set_defaults(run=run)


def request_from(args: argparse.Namespace, prompt: str, images: dict[str, bytes]) -> GenerationRequest:
    """The request for one object: the four views first, then the film."""
    options: dict[str, Any] = {
        name: getattr(args, name) for name in OPTIONS if name in args and name not in _NOT_OPTIONS
    }
    # frames use the distance and elevation of the generated views; the server may choose the elevation
    elevation_deg = options.get("elevation_deg", OWN_ELEVATION)
    distance = options.setdefault("distance", DEFAULT_DISTANCE)
    poses = with_film(args, four_views(elevation_deg, distance), elevation_deg, distance)
    if args.previews:
        options.setdefault("preview_every", PREVIEW_EVERY)
    return GenerationRequest(prompt, frame_poses=poses, **(options | images))


def run(args: argparse.Namespace) -> int:
    """Generate, write the files, report."""
    jobs = jobs_of(args)
    first, batch = jobs[0], is_batch(args)
    if batch:  # report what would fail every object before the first one
        request = request_from(args, "any", {first.field: b"any"} if first.field else {}).validate()
    else:
        request = request_from(args, first.prompt, first.images()).validate()
    check_tools(args.viewer, film=args.turntable_frames != 0 and args.video.endswith("mp4"))
    args.out.mkdir(parents=True, exist_ok=True)
    with leave_on_sigterm(), client_of(args, timeout_s=args.timeout_s) as client:
        if batch:
            return make_all(args, client, jobs)
        made = make(args, client, request, first.folder)
    for generation, paths in made:
        report(generation, paths)
    return int(any([warn_if_empty(generation) for generation, _ in made]))


def make(
    args: argparse.Namespace, client: Client, request: GenerationRequest, folder_name: str, label: str = ""
) -> list[tuple[Generation, list[Path]]]:
    """Generate the objects of one request and write their files; returns their paths.

    Each has a folder, with its index behind the name where there are several.
    """
    names = [folder_name] if request.num_seeds == 1 else [f"{folder_name}-{i}" for i in range(request.num_seeds)]
    previews: dict[int, list[SplatCloud]] = {index: [] for index in range(request.num_seeds)}

    def keep(preview: Preview) -> None:
        previews[preview.index].append(preview.cloud)
        if args.previews:
            args.previews.mkdir(parents=True, exist_ok=True)
            write_ply(args.previews / f"{names[preview.index]}-{preview.step:03d}.ply", preview.cloud)

    made = []
    for generation in follow(client, request, keep, label):
        # files are written to a temporary folder, which is deleted in any case, and moved when all are complete
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=args.out) as staging:
            files = write_artifacts(
                generation,
                client.server_parameters,
                Path(staging),
                args.viewer,
                args.video,
                previews[generation.index],
            )
            folder = args.out / names[generation.index]
            made.append((generation, move_files(Path(staging), files, folder, args.overwrite)))
    return made


def make_all(args: argparse.Namespace, client: Client, jobs: list[Job]) -> int:
    """Make one object after the other, continuing after failures; the exit code is 1 if there were any."""
    failed = []
    for number, job in enumerate(jobs, 1):
        label = f"[{number}/{len(jobs)}] "
        try:
            request = request_from(args, job.prompt, job.images()).validate()
            made = make(args, client, request, job.folder, label)
        except (DiffSplatError, OSError) as error:
            failed.append(job.folder)
            print(f"diffsplat: {label}{job.folder}: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        for generation, paths in made:
            folder = paths[0].parent
            for warning in generation.warnings:
                print(f"warning: {label}{folder.name}: {warning}", file=sys.stderr)
            if warn_if_empty(generation, f"{label}{folder.name}: "):
                failed.append(folder.name)
            seconds = generation.timings_ms["total"] / 1e3
            about = f"{len(generation.cloud)} splats, seed {generation.seed}, {seconds:.1f} s"
            print(f"{label}{folder}: {about}", flush=True)
    if failed:
        print(f"diffsplat: {len(failed)} of {len(jobs)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def follow(
    client: Client, request: GenerationRequest, keep: Callable[[Preview], None], label: str = ""
) -> list[Generation]:
    """Generate the objects of a request, each with a bar on stderr, prefixed with `label`; `keep` gets previews."""
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
    # the bar disappears at the end: a failure prints one line, a success the table
    console = Console(stderr=True)
    bar = ProgressBar(*columns, console=console, transient=True)
    with client.stream(request) as events, bar if console.is_interactive else nullcontext():
        tasks = [bar.add_task("sent", total=None, left="", label=label) for _ in range(request.num_seeds)]
        shown = ["no preview yet"] * request.num_seeds
        results = []
        for event in events:
            match event:
                case Queued(position=position, seconds_to_start=seconds, index=index):
                    left = "" if seconds is None else f"{seconds:.1f} s to start"
                    bar.update(tasks[index], description=f"waiting, place {position}", left=left)
                case Progress(step=step, steps=steps, seconds_left=seconds, previews_skipped=skipped, index=index):
                    left = "" if seconds is None else f"{seconds:.1f} s left"
                    phase = "denoising" if step < steps else "decoding"
                    if request.preview_every:
                        phase += f", {shown[index]}" + f", {skipped} skipped" * bool(skipped)
                    bar.update(tasks[index], description=phase, completed=step, total=steps, left=left)
                case Preview(cloud=cloud, step=step, number=number, index=index):
                    shown[index] = f"preview {number}: {len(cloud)} splats after step {step}"
                    keep(event)
                case Finished(result=generation):
                    results.append(generation)
    return sorted(results, key=lambda generation: generation.index)


def report(generation: Generation, paths: list[Path]) -> None:
    """Print warnings, stage times and file paths."""
    from rich.console import Console

    for warning in generation.warnings:
        Console(stderr=True).print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    print_result(generation.timings_ms, STAGES, f"{len(generation.cloud)} splats, seed {generation.seed}", paths)
