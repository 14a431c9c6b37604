"""Procedural objects rendered once, for all stages and runs: their views as records in tar files.

A file holds objects of one block of consecutive numbers. The folder's name is a digest of what decides the pixels; how
many objects and pool views a stage wants is not part of it, so that stages share files. A file that holds too little is
made again. Rendering continues where a signal or a full disk ended it, since files appear whole or not at all.
"""

import fcntl
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from training.data.procedural.source import ProceduralSource
from training.data.record import TRAINING_MAPS, BrokenRecord, PackedViews, decode_record, encode_record, parts_of_views
from training.data.storage import StorageError
from training.data.tar_store import INDEX_SUFFIX, TarStore, write_tar
from training.report import with_time_left

OBJECTS_PER_FILE = 64


class RenderedSource:
    """A procedural source whose views come from files below `cache`; `prepare` renders the missing ones."""

    def __init__(self, source: ProceduralSource, cache: Path, threads: int = 1) -> None:
        self.source = source
        self.layout = source.layout
        self.folder = cache / f"procedural-{source.pixels_key()}"
        self._threads = threads
        self._places: dict[str, tuple[TarStore, int]] = {}  # by uid
        self._preparing = threading.Lock()

    def prepare(self) -> None:
        """Render the objects that no file holds, with the time left.

        Raises:
            StorageError: the cache cannot be written.
        """
        with self._preparing:
            if self._places:
                return
            blocks: dict[int, list[int]] = {}
            for index in range(len(self.source)):
                blocks.setdefault((self.source.first_index + index) // OBJECTS_PER_FILE, []).append(index)
            with _locked(self.folder):
                stores = {block: self._complete_store(block, rows) for block, rows in blocks.items()}
                missing = [block for block, store in stores.items() if store is None]
                with ThreadPoolExecutor(self._threads) as pool:
                    what = f"rendering {len(self.source)} objects at {self.source.resolution} px"
                    for block in with_time_left(missing, what) if missing else ():
                        stores[block] = self._render(block, blocks[block], pool)
            self._places = {
                store.uid(row): (store, row) for store in stores.values() if store for row in range(len(store))
            }

    def __len__(self) -> int:
        return len(self.source)

    def provides(self) -> frozenset[str]:
        """As the procedural source."""
        return self.source.provides()

    def uid(self, index: int) -> str:
        """As the procedural source."""
        return self.source.uid(index)

    def caption(self, index: int, rng: np.random.Generator | None) -> str:
        """As the procedural source."""
        return self.source.caption(index, rng)

    def usable_views(self, index: int) -> tuple[int, ...]:
        """As the procedural source."""
        return self.source.usable_views(index)

    def views(self, index: int, view_ids: Sequence[int]) -> PackedViews:
        """Read from the object's file."""
        self.prepare()
        try:
            return self._read(index, view_ids)
        except BrokenRecord as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        with self._preparing:  # another process has replaced the file by one with a larger pool
            self._places = {}
        self.prepare()
        return self._read(index, view_ids)

    def _read(self, index: int, view_ids: Sequence[int]) -> PackedViews:
        store, row = self._places[self.source.uid(index)]
        return decode_record(store.read(row, parts_of_views(view_ids, TRAINING_MAPS)), view_ids)

    def blocks(self) -> None:
        """Every object is as cheap alone."""

    def identity(self) -> dict[str, Any]:
        """As the procedural source."""
        return self.source.identity()

    def _complete_store(self, block: int, rows: Sequence[int]) -> TarStore | None:
        """The block's file with the given objects and a large enough pool, if there is one."""
        wanted = {self.source.uid(row) for row in rows}
        for path in self.folder.glob(f"{block:06}-pool*.tar"):
            if int(path.stem.partition("pool")[2]) >= self.source.pool_size:
                store = TarStore([path], self.folder)
                if wanted <= {store.uid(row) for row in range(len(store))}:
                    return store
        return None

    def _render(self, block: int, rows: Sequence[int], pool: ThreadPoolExecutor) -> TarStore:
        """Write the block's file, and drop those that hold less."""
        path = self.folder / f"{block:06}-pool{self.source.pool_size}.tar"
        write_tar(path, list(pool.map(self._record, rows)))
        for old in self.folder.glob(f"{block:06}-pool*.tar"):
            if old != path and int(old.stem.partition("pool")[2]) < self.source.pool_size:
                old.unlink()
                old.with_name(old.name + INDEX_SUFFIX).unlink(missing_ok=True)
        return TarStore([path], self.folder)

    def _record(self, index: int) -> dict[str, bytes]:
        view_ids = self.source.usable_views(index)
        return encode_record(self.source.uid(index), self.source.views(index, view_ids), view_ids)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process at a time renders into a folder; the others then find the files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}") from error
