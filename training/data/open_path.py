"""A path -> the objects that lie there: which store, which objects, which captions."""

import hashlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from training.config.common import Data
from training.data.captions_csv import read_captions
from training.data.folder_store import FolderStore
from training.data.id_lists import names_of, read_ids, read_uid_map
from training.data.nerf_source import NerfSource, NerfStore, has_transforms
from training.data.parquet_store import ParquetStore
from training.data.record import TRAINING_MAPS
from training.data.record_source import RecordSource
from training.data.store import Store
from training.data.tar_store import TarStore
from training.data.views import GOBJAVERSE_LAYOUT, ViewLayout, layout_from_dict

LAYOUT_FILE = "layout.json"  # beside converted objects: their camera rig
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
    if path.is_dir() and has_transforms(path):
        return NerfStore(path)
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
    source = open_selected(data, resolution)
    source.rows = _split(source, data, validation)
    return source


def open_selected(data: Data, resolution: int | None, maps: Collection[str] = TRAINING_MAPS) -> RecordSource:
    """All listed objects of `data.source` that have a caption if there is a file of them.

    Raises:
        ValueError: as `open_records`.
    """
    store = open_store(Path(data.source))
    uid_map = {} if data.uid_map is None else read_uid_map(data.uid_map)
    captions = None if data.captions is None else read_captions(data.captions)
    rows = list(range(len(store)))
    if isinstance(store, NerfStore):
        source: RecordSource = NerfSource(store, rows, resolution, captions, uid_map)
    else:
        source = RecordSource(store, rows, resolution, captions, uid_map, maps, _layout_of(Path(data.source)))
    if data.ids is not None:
        source.rows = _listed(source, read_ids(data.ids, "data.ids"), f"data.ids = {data.ids}")
    if captions is not None:
        source.rows = _with_captions(source, captions, data)
    return source


def _layout_of(path: Path) -> ViewLayout:
    """The camera rig that converted objects name, else GObjaverse's."""
    file = path / LAYOUT_FILE
    if not file.is_file():
        return GOBJAVERSE_LAYOUT
    try:
        return layout_from_dict(json.loads(file.read_text()))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _files(path: Path, suffix: str) -> list[Path]:
    """The path itself, or files in it or in its folders."""
    if path.is_file():
        return [path] if path.suffix == suffix else []
    return sorted(path.glob(f"*{suffix}")) or sorted(path.glob(f"*/*{suffix}"))


def _listed(source: RecordSource, ids: Sequence[str], what: str) -> list[int]:
    """Rows of the store whose object is listed."""
    wanted = {name for entry in ids for name in names_of(entry, {})}
    found = [row for row in source.rows if not wanted.isdisjoint(source.names(row))]
    if not found:
        first = source.names(source.rows[0])[0]
        raise ValueError(
            f"{what}: lists none of the {len(source)} objects; it begins with {ids[0]!r}, they with {first!r}"
        )
    if len(found) < len(set(ids)):
        print(f"{what}: {len(found)} of {len(set(ids))} listed objects are there", file=sys.stderr)
    return found


def _with_captions(source: RecordSource, captions: Mapping[str, str], data: Data) -> list[int]:
    """Rows of the store whose object has a caption; all must, unless broken objects are skipped."""
    found = [row for row in source.rows if any(name in captions for name in source.names(row))]
    missing = sorted(set(source.rows) - set(found))
    if missing and (not data.skip_broken or not found):
        raise ValueError(
            f"data.captions = {data.captions}: has no caption of {len(missing)} of {len(source)} objects, such as "
            f"{source.names(missing[0])[0]!r}; data.skip_broken leaves them out, data.uid_map gives objects other names"
        )
    if missing:
        print(f"{len(missing)} objects without a caption are left out", file=sys.stderr)
    return found


def _split(source: RecordSource, data: Data, validation: bool) -> list[int]:
    """Rows of the store to train on, or held out: the listed ones, else a fixed random choice."""

    def place(row: int) -> bytes:
        return hashlib.sha256(f"{data.seed}:{source.names(row)[0]}".encode()).digest()

    order = sorted(source.rows, key=place)
    if data.validation_ids is None:
        held, rest = order[: data.validation_objects], order[data.validation_objects :]
    else:
        ids = read_ids(data.validation_ids, "data.validation_ids")
        listed = set(_listed(source, ids, f"data.validation_ids = {data.validation_ids}"))
        held = [row for row in order if row in listed][: data.validation_objects]
        rest = [row for row in order if row not in listed]
    if not rest:
        raise ValueError(
            f"data.source = {data.source} has {len(source)} objects, of which data.validation_objects = "
            f"{data.validation_objects} are held out: none is left to train on"
        )
    return sorted(held if validation else rest[: data.objects or len(rest)])
