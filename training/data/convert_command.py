"""`python -m training data convert SRC OUT`: stored objects -> shards at training resolution, with the needed maps."""

import dataclasses
import hashlib
import json
import math
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from training.config.common import Data
from training.data.open_path import LAYOUT_FILE, open_selected
from training.data.parquet_store import write_parquet
from training.data.record import BrokenRecord, encode_record
from training.data.record_source import RecordSource
from training.data.storage import replace_file
from training.data.tar_store import write_tar
from training.report import with_time_left

SETTINGS_FILE = "convert.json"
BROKEN_FILE = "broken.json"


@dataclass(frozen=True)
class Convert:
    """Write objects of any supported form as WebDataset or parquet shards at training resolution.

    Shards appear whole or not at all; the same command goes on where an interrupted one ended.
    """

    source: tyro.conf.Positional[Path]  # as `data.source` of a run
    out: tyro.conf.Positional[Path]  # a folder of its own
    side: int = 256  # of the images, in pixels; those of the source may be larger
    maps: tuple[Literal["normal", "depth", "albedo", "metallic_roughness"], ...] = ("normal", "depth")  # besides images
    form: Literal["webdataset", "parquet"] = "webdataset"
    objects_per_shard: int = 64
    captions: Path | None = None  # CSV of ids and captions; else the texts beside the objects are kept
    ids: Path | None = None  # list of the objects to convert
    uid_map: Path | None = None  # JSON from the source's ids to those of captions and list
    skip_broken: bool = False  # leave out objects that cannot be read: `broken.json` says which and why
    workers: int = 0  # threads; 0: one per core


def main(arguments: list[str]) -> int:
    """Run the command; 0, or 1 after an error."""
    command = tyro.cli(Convert, prog="python -m training data convert", args=arguments)
    written, broken = convert(command)
    print(f"{command.out}: {written} shards, {len(broken)} broken objects left out")
    return 0


def convert(command: Convert) -> tuple[int, dict[str, str]]:
    """Write the missing shards; their number in all, and the objects left out with the reason.

    Raises:
        ValueError: a field is out of range, or `out` holds something else.
        BrokenRecord: an object cannot be read and is not to be skipped.
        StorageError: a shard cannot be written; those before it stay.
    """
    for field in ("side", "objects_per_shard"):
        if getattr(command, field) < 1:
            raise ValueError(f"{field} = {getattr(command, field)} must be at least 1")
    if command.workers < 0:
        raise ValueError(f"workers = {command.workers} must be 0 (one per core) or more")
    source = open_converted(command)
    missing = sorted({"rgb", *command.maps} - source.provides())
    if missing:
        known = ", ".join(sorted(source.provides()))
        raise ValueError(f"maps: {command.source} has no {', '.join(missing)}; it has {known}")
    facts = _facts(command, source)
    _open_output(command.out, facts)
    _write_json(command.out / LAYOUT_FILE, dataclasses.asdict(source.layout))
    broken: dict[str, str] = _read_json(command.out / BROKEN_FILE) or {}
    suffix = {"webdataset": ".tar", "parquet": ".parquet"}[command.form]
    count = math.ceil(len(source) / command.objects_per_shard)
    paths = [command.out / f"{number:05}{suffix}" for number in range(count)]
    todo = [(number, path) for number, path in enumerate(paths) if not path.is_file()]
    write = write_tar if command.form == "webdataset" else write_parquet
    with ThreadPoolExecutor(command.workers or len(os.sched_getaffinity(0))) as pool:
        for number, path in with_time_left(todo, f"converting {len(source)} objects") if todo else ():
            start = number * command.objects_per_shard
            rows = range(start, min(start + command.objects_per_shard, len(source)))
            made = [*pool.map(lambda row: _record(source, row, command.skip_broken), rows)]
            for row, entry in zip(rows, made, strict=True):
                if isinstance(entry, str):
                    broken[source.uid(row)] = entry
                    print(f"broken object, left out: {entry}", file=sys.stderr)
            if broken:  # before the shard, so that no broken object is forgotten
                _write_json(command.out / BROKEN_FILE, broken)
            write(path, [entry for entry in made if not isinstance(entry, str)])
    return count, broken


def open_converted(command: Convert) -> RecordSource:
    """All objects that are to be converted."""
    data = Data(
        source=str(command.source), captions=command.captions, ids=command.ids, uid_map=command.uid_map,
        skip_broken=command.skip_broken,
    )  # fmt: skip
    return open_selected(data, command.side, ("rgb", *command.maps))


def _record(source: RecordSource, row: int, skip_broken: bool) -> dict[str, bytes] | str:
    """The record at its new size, or why there is none."""
    try:
        views = source.usable_views(row)
        if not views:
            raise BrokenRecord(f"{source.uid(row)}: no view has both an image and a camera")
        return encode_record(source.uid(row), source.views(row, views), views, source.captions(row))
    except BrokenRecord as error:
        if not skip_broken:
            raise BrokenRecord(f"{error}; --skip-broken leaves such objects out") from error
        return str(error)


def _facts(command: Convert, source: RecordSource) -> dict[str, Any]:
    """What decides the shards."""
    text = "" if command.captions is None else hashlib.sha256(command.captions.read_bytes()).hexdigest()[:16]
    return {
        "source": source.identity(), "side": command.side, "maps": sorted(command.maps), "form": command.form,
        "objects_per_shard": command.objects_per_shard, "captions": text,
    }  # fmt: skip


def _open_output(out: Path, facts: dict[str, Any]) -> None:
    if out.is_file():
        raise ValueError(f"out = {out} is a file; a folder is needed")
    stored = _read_json(out / SETTINGS_FILE)
    if stored is None:
        if out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise ValueError(f"out = {out} holds something else than converted objects; choose an empty folder")
        _write_json(out / SETTINGS_FILE, facts)
        return
    for field, value in facts.items():
        if stored.get(field) != value:
            raise ValueError(
                f"out = {out} was converted with {field} = {stored.get(field)}, not {value}; choose another folder"
            )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error


def _write_json(path: Path, values: Sequence[Any] | dict[str, Any]) -> None:
    replace_file(path, lambda temporary: temporary.write_text(json.dumps(values, indent=2) + "\n"))
