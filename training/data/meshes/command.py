"""`python -m training data render MESHES OUT`: own 3D models -> records."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.data.meshes.batch import clean_partial, open_output, process_outcomes, shard_of
from training.data.meshes.job import Job, Outcome
from training.data.meshes.loading import MAX_FACES, Up
from training.data.meshes.names import caption_of, find_meshes, object_ids
from training.data.meshes.ray_tasks import ray_outcomes
from training.data.meshes.rendering import RenderSettings

_LINE_EVERY_S = 30.0  # of progress, where there is no terminal


@dataclass(frozen=True)
class Work:
    """How the objects are spread over processes and machines."""

    shard: str = "0/1"  # i/n: every n-th object from the i-th; run n commands to share the work
    workers: int = 0  # processes on this machine; 0: one per core
    ray: bool = False  # render as tasks of a Ray cluster instead
    ray_address: str = ""  # of its head; empty: RAY_ADDRESS, or a cluster of this machine alone
    allow_failures: bool = False  # exit with 0 although objects failed


@dataclass(frozen=True)
class Render:
    """Render mesh files (.glb .gltf .obj .ply .stl) as records: 40 views with normals, depth and materials.

    Finished objects are skipped, so the same command continues an interrupted run.
    """

    meshes: tyro.conf.Positional[Path]  # a folder, searched with all below it, or one file
    out: tyro.conf.Positional[Path]  # a folder of its own; one folder below it per object
    settings: tyro.conf.OmitArgPrefixes[RenderSettings] = RenderSettings()
    work: tyro.conf.OmitArgPrefixes[Work] = Work()
    up: Up = "auto"  # axis that points up; auto: z for .ply and .stl, y for the others
    max_faces: int = MAX_FACES  # meshes with more are refused


def main(arguments: list[str]) -> int:
    """Run the command; 0, or 1 if objects failed or the input is wrong, 130 after a stop signal."""
    command = tyro.cli(Render, prog="python -m training data render", args=arguments)
    command.settings.check()
    root, out = command.meshes, command.out
    paths = find_meshes(root)
    jobs = [
        Job(uid, path, (caption_of(path) or uid,), out, command.settings, command.up, command.max_faces)
        for uid, path in zip(object_ids(paths, root), paths, strict=True)
    ]
    return render_jobs(jobs, out, command.settings, command.work)


def render_jobs(jobs: Sequence[Job], out: Path, settings: RenderSettings, work: Work) -> int:
    """Render what is not finished yet of this shard, with progress and a report; the exit code."""
    if work.workers < 0:
        raise ValueError(f"workers = {work.workers} must be 0 (one per core) or more")
    mine = [jobs[row] for row in shard_of(len(jobs), work.shard)]
    open_output(out, settings)
    pending = [job for job in mine if not job.finished]
    clean_partial(out, pending)
    failures: list[Outcome] = []
    notes: list[Outcome] = []
    done = 0
    console = Console(stderr=True)
    if work.ray:
        outcomes = ray_outcomes(pending, work.ray_address)
    else:
        outcomes = process_outcomes(pending, work.workers or len(os.sched_getaffinity(0)))
    try:
        for outcome in _with_progress(outcomes, len(pending), console):
            if outcome.failure:
                failures.append(outcome)
                console.print(
                    f"failed: {outcome.source}: {outcome.failure}", highlight=False, markup=False, soft_wrap=True
                )
                continue
            done += 1
            if outcome.notes:
                notes.append(outcome)
    finally:
        clean_partial(out, ())
        _write_report(out, work.shard, failures, notes)
        skipped = len(mine) - len(pending)
        print(f"{done} rendered, {skipped} finished before, {len(failures)} failed, of {len(mine)} objects")
        if notes:
            print(f"{len(notes)} objects lack something: see {report_path(out, work.shard)}")
    return int(bool(failures) and not work.allow_failures)


def report_path(out: Path, shard: str) -> Path:
    """Where a shard's report lies."""
    return out / ("report.json" if shard == "0/1" else f"report-{shard.replace('/', '-of-')}.json")


def _write_report(out: Path, shard: str, failures: Sequence[Outcome], notes: Sequence[Outcome]) -> None:
    """Failures and notes by object; notes of earlier runs stay."""
    path = report_path(out, shard)
    report: dict[str, Any] = {"failed": {}, "notes": {}}
    if path.is_file():
        report["notes"] = json.loads(path.read_text())["notes"]
    report["failed"] = {outcome.uid: outcome.failure for outcome in failures}
    report["notes"].update({outcome.uid: list(outcome.notes) for outcome in notes})
    path.write_text(json.dumps(report, indent=2) + "\n")


def _with_progress(outcomes: Iterator[Outcome], total: int, console: Console) -> Iterator[Outcome]:
    """The outcomes, with a bar on a terminal, otherwise a line now and then."""
    columns = (
        TextColumn("objects"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    start = said = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("objects", total=total)
        for count, outcome in enumerate(outcomes, start=1):
            yield outcome
            bar.advance(task)
            now = time.monotonic()
            if not console.is_terminal and (now - said > _LINE_EVERY_S or count == total):
                said = now
                left = (now - start) / count * (total - count)
                console.print(f"{count}/{total} objects, {left / 60:.0f} min left", highlight=False)
