"""Engines that were built, one folder each: `<graph>-<key>/` with an engine and its description.

The key is everything that decides what an engine is: hash of the graph, module and version of TensorRT, compute
capabilities, precision, profiles. An engine is written into a hidden folder, which is renamed when it is complete, so
that an interrupted build leaves nothing behind that could be taken for one; what a killed build left is removed by the
next.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from diffsplat.backends.engine_file import SUFFIX, EngineInfo, Profile, TensorRTModule
from diffsplat.graph import Precision
from diffsplat.integrity import BundleError
from export.common import ExportError

FOLDER_VARIABLE = "DIFFSPLAT_ENGINE_CACHE"
_FORMAT = 1  # of the description: a newer one must not find older engines
_LOCK = "lock"
_PREFIX = ".building-"


def default_folder() -> Path:
    """``$DIFFSPLAT_ENGINE_CACHE`` if that is set, else ``diffsplat/engines`` in the user's folder of caches."""
    named = os.environ.get(FOLDER_VARIABLE)
    return (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "diffsplat/engines").expanduser()
    )


def file_hash(files: list[Path]) -> str:
    """One hash of an ONNX file and its external weights."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def engine_key(
    graph_hash: str,
    module: TensorRTModule,
    version: str,
    capabilities: tuple[str, ...],
    precision: Precision,
    profiles: tuple[Profile, ...],
) -> str:
    """The key of an engine: 20 hexadecimal digits."""
    ranges = [{name: asdict(each) for name, each in profile.items()} for profile in profiles]
    values = (_FORMAT, graph_hash, module, version, capabilities, precision, ranges)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def key_of(info: EngineInfo) -> str:
    """The key under which a described engine belongs."""
    return engine_key(info.graph_hash, info.module, info.version, info.capabilities, info.precision, info.profiles)


class EngineCache:
    """A folder of engines.

    Args:
        folder: made when the first engine is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, graph: str, key: str) -> tuple[Path, EngineInfo] | None:
        """The engine of a graph under a key, verified; None if there is none.

        Raises:
            ExportError: it is damaged, or is not what its key says.
        """
        folder = self.folder / f"{graph}-{key}"
        if not folder.is_dir():
            return None
        path = folder / f"{graph}{SUFFIX}"
        fix = f"delete {folder} and build again"
        try:
            info = EngineInfo.read(path)
        except BundleError as error:
            raise ExportError(f"graph {graph!r}: damaged engine in the cache: {error}; {fix}") from None
        if (info.graph, key_of(info)) != (graph, key):
            raise ExportError(f"graph {graph!r}: {path} is an engine of another graph or version; {fix}")
        return path, info

    @contextmanager
    def adding(self, graph: str, key: str) -> Iterator[Path]:
        """A hidden folder for the files of one engine; it becomes the engine's when the block ends without an error.

        Raises:
            ExportError: the cache is not writable or the disk is full.
        """
        try:
            self._remove_remains()
            with self._hidden() as folder:
                yield folder
                (folder / _LOCK).unlink()
                final = self.folder / f"{graph}-{key}"
                if not final.exists():  # another process may have been faster: both built the same
                    folder.rename(final)
        except OSError as error:
            raise ExportError(f"graph {graph!r}: engine cache {self.folder} is not writable: {error}") from None

    @contextmanager
    def _hidden(self) -> Iterator[Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.folder))
        try:
            with (folder / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel however the process ends
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # renamed if all went well

    def _remove_remains(self) -> None:
        """Remove the hidden folders of builds that were killed."""
        for folder in self.folder.glob(f"{_PREFIX}*"):
            try:
                with (folder / _LOCK).open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            except OSError:  # being built, or just made
                continue
