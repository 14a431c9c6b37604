"""One object of a run: file -> finished folder, in whichever process."""

import os
import shutil
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.data.meshes.loading import MAX_FACES, LoadedMesh, MeshError, Up, load_mesh
from training.data.meshes.rendering import RenderSettings, render_object
from training.data.meshes.surface import Surface, extents, transformed

PARTIAL = ".partial"  # folder below the output that holds objects being written


@dataclass(frozen=True)
class Job:
    """What a worker needs to know."""

    uid: str
    source: Path
    captions: tuple[str, ...]
    out: Path  # folder of all objects
    settings: RenderSettings
    up: Up = "auto"
    max_faces: int = MAX_FACES
    archive: Path | None = None  # zip file of which `source` is a member, its textures beside it
    rotation: tuple[float, ...] | None = None  # 9 numbers, rows of a matrix for the y-up model
    size: tuple[float, float, float] | None = None  # width, height and depth to which it is stretched then

    @property
    def finished(self) -> bool:
        """Whether the object is there; it appears whole or not at all."""
        return (self.out / self.uid).is_dir()


class Outcome(NamedTuple):
    """What became of an object."""

    uid: str
    source: str
    failure: str = ""  # why there is no record
    notes: tuple[str, ...] = ()  # what the record lacks
    faces: int = 0
    seconds: float = 0.0


def run_job(job: Job) -> Outcome:
    """Render one object and write its folder.

    Raises:
        OSError: the output cannot be written; no other object could be either.
    """
    start = time.perf_counter()
    try:
        loaded = _load(job)
        rendered = render_object(_placed(loaded.surface, job), job.uid, job.settings, job.captions)
    except MeshError as error:
        return Outcome(job.uid, str(job.source), failure=str(error))
    except ValueError as error:  # a texture or material that cannot be read
        return Outcome(job.uid, str(job.source), failure=f"unreadable: {error}")
    except MemoryError:
        return Outcome(job.uid, str(job.source), failure="it does not fit into memory")
    _write(job, rendered.record)
    notes = (*loaded.notes, *rendered.notes)
    return Outcome(job.uid, str(job.source), "", notes, rendered.faces, time.perf_counter() - start)


def _load(job: Job) -> LoadedMesh:
    if job.archive is None:
        return load_mesh(job.source, job.up, job.max_faces)
    with zipfile.ZipFile(job.archive) as archive, tempfile.TemporaryDirectory() as folder:
        beside = f"{job.source.parent}/"
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(beside)])
        return load_mesh(Path(folder) / job.source, job.up, job.max_faces)


def _placed(surface: Surface, job: Job) -> Surface:
    """The model turned and stretched as its catalogue says."""
    if job.rotation is not None:
        surface = transformed(surface, np.array(job.rotation).reshape(3, 3))
    if job.size is not None:
        low, high = extents(surface)
        sides = high - low
        flat = sides <= 1e-6 * sides.max()  # nothing to stretch
        surface = transformed(surface, np.diag(np.where(flat, 1.0, np.array(job.size) / np.where(flat, 1.0, sides))))
    return surface


def _write(job: Job, record: dict[str, bytes]) -> None:
    """The record's parts as files of a folder, which is moved to its place when it is complete."""
    partial = job.out / PARTIAL / job.uid
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for part, data in record.items():
        if part not in ("__key__", "uid"):
            (partial / part).write_bytes(data)
    os.replace(partial, job.out / job.uid)
