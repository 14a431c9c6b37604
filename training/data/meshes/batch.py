"""Many objects: jobs to processes of this machine, what becomes of them, and the report of a run."""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import cv2

from training.data.meshes.job import PARTIAL, Job, Outcome, run_job
from training.data.meshes.rendering import RenderSettings

SETTINGS_FILE = "render.json"
_DIED = "the process that rendered it died; most likely it ran out of memory"
_WATCH_S = 1.0  # how often a worker looks whether its parent lives


def shard_of(count: int, shard: str) -> range:
    """Rows of `count` that belong to shard "i/n", i from 0.

    Raises:
        ValueError: it is not of this form.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or not 0 <= int(match[1]) < int(match[2]):
        raise ValueError(f"shard = {shard!r} must be i/n with i from 0 to n - 1, such as 0/4")
    return range(int(match[1]), count, int(match[2]))


def open_output(out: Path, settings: RenderSettings) -> None:
    """Make the folder, or check that it was made with the same settings.

    Raises:
        ValueError: it was not, or it is no folder of renders.
    """
    path = out / SETTINGS_FILE
    wanted = json.loads(json.dumps(asdict(settings)))
    if out.is_file():
        raise ValueError(f"out = {out} is a file; a folder is needed")
    if not path.is_file():
        if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise ValueError(f"out = {out} holds something else than renders; choose an empty folder")
        out.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(wanted, indent=2) + "\n")
        os.replace(temporary, path)
        return
    stored = json.loads(path.read_text())
    for field, value in wanted.items():
        if stored.get(field) != value:
            raise ValueError(
                f"out = {out} was rendered with {field} = {stored.get(field)}, not {value}; choose another folder"
            )


def process_outcomes(jobs: Sequence[Job], workers: int) -> Iterator[Outcome]:
    """Outcomes as they come, from `workers` processes.

    A process that dies takes the objects with it that are being rendered then; each of these is tried once more on its
    own, and fails if its process dies again.
    """
    waiting = list(reversed(jobs))
    while waiting:
        pool = _pool(workers)
        running: dict[Future[Outcome], Job] = {}
        lost: list[Job] = []
        try:
            while (waiting and not lost) or running:
                while waiting and not lost and len(running) < 2 * workers:
                    running[pool.submit(run_job, waiting[-1])] = waiting[-1]
                    waiting.pop()
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(done)
                    try:
                        yield done.result()
                    except BrokenProcessPool:
                        lost.append(job)
        except BrokenProcessPool:  # noticed on submission
            lost += running.values()
            if not lost:
                raise RuntimeError("the processes that render die as they start") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        for job in lost:
            yield _alone(job)


def _alone(job: Job) -> Outcome:
    with _pool(1) as pool:
        try:
            return pool.submit(run_job, job).result()
        except BrokenProcessPool:
            return Outcome(job.uid, str(job.source), failure=_DIED)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(os.getpid(),)
    )


def _start_worker(parent: int) -> None:
    """One thread per process; Ctrl-C is the parent's; no worker outlives its parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def clean_partial(out: Path, jobs: Iterable[Job]) -> None:
    """Remove what interrupted runs left of these jobs, and the folder of such if nothing else is in it."""
    for job in jobs:
        shutil.rmtree(out / PARTIAL / job.uid, ignore_errors=True)
    with contextlib.suppress(OSError):  # another shard is writing there
        (out / PARTIAL).rmdir()
