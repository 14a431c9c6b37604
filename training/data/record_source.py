"""Stored records as a source of objects."""

import functools
import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from training.data.id_lists import names_of
from training.data.record import (
    TRAINING_MAPS,
    BrokenRecord,
    PackedViews,
    decode_record,
    maps_of,
    parts_of_views,
    usable_views,
)
from training.data.resize import shrink_views
from training.data.store import Store
from training.data.views import GOBJAVERSE_LAYOUT, ViewLayout

CAPTION_PARTS = ("txt", "caption.txt", "captions.txt")  # captions beside an object's views, one per line
_TRIED = 32  # objects looked at to learn what a store's objects have


class RecordSource:
    """Some records of a store.

    Args:
        store: Where the records lie.
        rows: Their numbers in the store.
        resolution: Image side of `views`; None: as stored.
        captions: By any name of an object (`id_lists.names_of`), instead of the texts beside the views.
        uid_map: Other names of the objects.
        maps: What `views` reads besides images and cameras.
        layout: Camera rig of all objects.
    """

    def __init__(
        self,
        store: Store,
        rows: Sequence[int],
        resolution: int | None = None,
        captions: Mapping[str, str] | None = None,
        uid_map: Mapping[str, str] | None = None,
        maps: Collection[str] = TRAINING_MAPS,
        layout: ViewLayout = GOBJAVERSE_LAYOUT,
    ) -> None:
        self.layout = layout
        self.store = store
        self.rows = list(rows)  # of the objects in the store; who opens the source may still choose among them
        self.resolution = resolution
        self.maps = frozenset(maps)
        self._table = captions
        self._uid_map = dict(uid_map or {})
        # of a number, so that the rows must be chosen before the first caption is asked for
        self._captions = functools.lru_cache(maxsize=1 << 16)(self._read_captions)

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def _provided(self) -> frozenset[str]:
        last = "the source is empty"
        for index in range(min(_TRIED, len(self))):
            try:
                return self._provided_by(index)
            except BrokenRecord as error:
                last = str(error)
        raise BrokenRecord(f"{self.store.path}: none of the first {_TRIED} objects can be read; the last: {last}")

    def provides(self) -> frozenset[str]:
        """What the first object has that can be read."""
        return self._provided

    def prepare(self) -> None:
        """Nothing: records are stored."""

    def uid(self, index: int) -> str:
        """The object's id in the store."""
        return self.store.uid(self.rows[index])

    def names(self, row: int) -> tuple[str, ...]:
        """Names by which lists may know the object in this row of the store."""
        return names_of(self.store.uid(row), self._uid_map)

    def captions(self, index: int) -> tuple[str, ...]:
        """All of the object's captions, the plainest first."""
        return self._captions(index)

    def caption(self, index: int, rng: np.random.Generator | None) -> str:
        """One of the object's captions."""
        captions = self._captions(index)
        if not captions:
            return ""
        return captions[0 if rng is None or len(captions) == 1 else int(rng.integers(len(captions)))]

    def usable_views(self, index: int) -> tuple[int, ...]:
        """Views with an image and a camera."""
        return usable_views(self._parts(index), self.layout.count)

    def views(self, index: int, view_ids: Sequence[int]) -> PackedViews:
        """Read, decoded and shrunk."""
        try:
            packed = self._decode(index, view_ids)
            return packed if self.resolution is None else shrink_views(packed, self.resolution)
        except BrokenRecord as error:
            raise self._named(index, error) from error

    def blocks(self) -> Sequence[range] | None:
        """Neighbours in the store."""
        whole = self.store.blocks()
        if whole is None:
            return None
        block_of = np.concatenate([np.full(len(block), number) for number, block in enumerate(whole)])[self.rows]
        starts = [0, *(np.flatnonzero(np.diff(block_of)) + 1).tolist(), len(self.rows)]
        return [range(start, end) for start, end in zip(starts[:-1], starts[1:], strict=True)]

    def identity(self) -> dict[str, Any]:
        """Kind and name of the store, and a digest of the objects' ids."""
        uids = hashlib.sha256("\n".join(map(self.uid, range(len(self)))).encode()).hexdigest()[:16]
        return {"kind": self.store.kind, "name": self.store.path.name, "objects": len(self), "uids": uids}

    def _decode(self, index: int, view_ids: Sequence[int]) -> PackedViews:
        record = self.store.read(self.rows[index], parts_of_views(view_ids, self.maps))
        return decode_record(record, view_ids, self.maps & self.provides())

    def _provided_by(self, index: int) -> frozenset[str]:
        views = self.usable_views(index)
        if not views:
            raise BrokenRecord(f"{self.uid(index)}: no view has both an image and a camera")
        maps = maps_of(self._parts(index), views[0])
        return maps | {"caption"} if self._captions(index) else maps

    def _parts(self, index: int) -> Collection[str]:
        try:
            return self.store.parts(self.rows[index])
        except BrokenRecord as error:
            raise self._named(index, error) from error

    def _read_captions(self, index: int) -> tuple[str, ...]:
        if self._table is not None:
            known = [name for name in self.names(self.rows[index]) if name in self._table]
            return (self._table[known[0]],) if known else ()
        parts = self.store.read(self.rows[index], CAPTION_PARTS)
        lines = [line.strip() for data in parts.values() for line in data.decode(errors="replace").splitlines()]
        return tuple(line for line in lines if line)

    def _named(self, index: int, error: BrokenRecord) -> BrokenRecord:
        uid = self.uid(index)
        text = str(error)
        return error if text.startswith(f"{uid}: ") else BrokenRecord(f"{uid}: {text}")
