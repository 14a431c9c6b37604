"""A path -> the objects that lie there: which store, which objects, which captions."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.config.common import Data
from training.data.captions_csv import read_captions
from training.data.folder_store import FolderStore
from training.data.id_lists import names_of, read_ids, read_uid_map
from training.data.parquet_store import ParquetStore
from training.data.record_source import RecordSource
from training.data.store import Store
from training.data.tar_store import TarStore

FORMS = (
    "a folder of objects as GObjaverse or `training data render` write them, their tar files, WebDataset shards "
    "(.tar), parquet files, or folders with a transforms.json"
)


def open_store(path: Path, field: str = "data.source") -> Store:
    """The records at a path, whatever their form.

    Raises:
        ValueError: nothing of the supported forms lies there.
    """
    if not path.exists():
        raise ValueError(f"{field} = {path}: does not exist; it must be {FORMS}")
    for suffix, form in ((".parquet", ParquetStore), (".tar", TarStore)):
        if files := _files(path, suffix):
            return form(files, path)
    if path.is_dir():
        store = FolderStore(path)
        if len(store):
            return store
    raise ValueError(f"{field} = {path}: holds no objects; it must be {FORMS}")


def open_records(data: Data, resolution: int | None, validation: bool) -> RecordSource:
    """The objects of `data.source` to train on, or those held out.

    Raises:
        ValueError: a field names something that is missing or does not fit the objects.
    """
    store = open_store(Path(data.source))
    uid_map = {} if data.uid_map is None else read_uid_map(data.uid_map)
    captions = None if data.captions is None else read_captions(data.captions)
    names = [names_of(store.uid(row), uid_map) for row in range(len(store))]
    rows = list(range(len(store)))
    if data.ids is not None:
        rows = _listed(rows, names, read_ids(data.ids, "data.ids"), f"data.ids = {data.ids}")
    if captions is not None:
        rows = _with_captions(rows, names, captions, data)
    rows = _split(rows, names, data, validation)
    return RecordSource(store, rows, resolution, captions, uid_map)


def _files(path: Path, suffix: str) -> list[Path]:
    """The path itself, or files in it or in its folders."""
    if path.is_file():
        return [path] if path.suffix == suffix else []
    return sorted(path.glob(f"*{suffix}")) or sorted(path.glob(f"*/*{suffix}"))


def _listed(rows: Sequence[int], names: Sequence[tuple[str, ...]], ids: Sequence[str], what: str) -> list[int]:
    """Rows whose object is listed."""
    wanted = {name for entry in ids for name in names_of(entry, {})}
    found = [row for row in rows if not wanted.isdisjoint(names[row])]
    if not found:
        raise ValueError(
            f"{what}: lists none of the {len(rows)} objects; it begins with {ids[0]!r}, they with {names[rows[0]][0]!r}"
        )
    if len(found) < len(set(ids)):
        print(f"{what}: {len(found)} of {len(set(ids))} listed objects are there", file=sys.stderr)
    return found


def _with_captions(
    rows: list[int], names: Sequence[tuple[str, ...]], captions: Mapping[str, str], data: Data
) -> list[int]:
    """Rows whose object has a caption; all must, unless broken objects are skipped."""
    found = [row for row in rows if any(name in captions for name in names[row])]
    missing = len(rows) - len(found)
    if missing and (not data.skip_broken or not found):
        first = names[next(row for row in rows if row not in set(found))][0]
        raise ValueError(
            f"data.captions = {data.captions}: has no caption of {missing} of {len(rows)} objects, such as {first!r}; "
            "data.skip_broken leaves them out, data.uid_map gives objects other names"
        )
    if missing:
        print(f"{missing} objects without a caption are left out", file=sys.stderr)
    return found


def _split(rows: list[int], names: Sequence[tuple[str, ...]], data: Data, validation: bool) -> list[int]:
    """Rows to train on, or held out: the listed ones, else a fixed random choice."""

    def place(row: int) -> bytes:
        return hashlib.sha256(f"{data.seed}:{names[row][0]}".encode()).digest()

    if data.validation_ids is not None:
        what = f"data.validation_ids = {data.validation_ids}"
        held = sorted(_listed(rows, names, read_ids(data.validation_ids, "data.validation_ids"), what), key=place)
        held_out = set(held)
        held = held[: data.validation_objects]
        rest = sorted((row for row in rows if row not in held_out), key=place)
    else:
        order = sorted(rows, key=place)
        held, rest = order[: data.validation_objects], order[data.validation_objects :]
    if not rest:
        raise ValueError(
            f"data.source = {data.source} has {len(rows)} objects, of which data.validation_objects = "
            f"{data.validation_objects} are held out: none is left to train on"
        )
    return sorted(held if validation else rest[: data.objects or len(rest)])
