"""Interrupted imports: finished networks wait beside the bundle's place, where the next attempt finds them."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffsplat.integrity import BundleError, describe_file, verify_file
from export.common import ProgressCallback
from export.importing.copy import copy_network
from export.importing.layout import SourceError
from export.importing.network import FoundNetwork

STAGING = "bundle"  # folder of the unfinished bundle
_RECORD = "record.json"
_RECORD_VERSION = 1
NetworkRecord = dict[str, Any]  # of a finished network: made_from, files, sources


@contextmanager
def working_folder(out: Path) -> Iterator[Path]:
    """Folder for networks until the bundle is complete; it is kept on failure and removed on success."""
    working = out.parent / f".{out.name}-import"
    (working / STAGING).mkdir(parents=True, exist_ok=True)
    with (working / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SourceError(f"{working}: another import to {out} is running") from None
        try:
            yield working
        except BaseException:  # includes Ctrl-C
            _drop_unfinished(working)
            raise
        shutil.rmtree(working)


def _drop_unfinished(working: Path) -> None:
    """Remove files of unfinished networks, or the whole folder if no network is finished."""
    finished = {file for record in _read_records(working).values() for file in record["files"]}
    if not finished or not (working / STAGING).is_dir():  # or the bundle has been moved already
        shutil.rmtree(working)
        return
    for path in (working / STAGING).iterdir():
        if path.name not in finished:
            path.unlink()


def _read_records(working: Path) -> dict[str, NetworkRecord]:
    try:
        return {name: record for name, record in json.loads((working / _RECORD).read_text()).items() if record["files"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # missing or damaged: nothing is finished
        return {}


def kept_networks(working: Path, networks: Mapping[str, FoundNetwork], max_file_bytes: int) -> dict[str, NetworkRecord]:
    """Records of the networks that an earlier import finished; all other files are removed."""
    records = _read_records(working)
    kept = {}
    for name, network in networks.items():
        try:
            record = records[name]
            if record["made_from"] != _made_from(network, max_file_bytes):
                continue
            for file, expected in record["files"].items():
                verify_file(working / STAGING, _RECORD, file, expected)
        except (BundleError, KeyError, TypeError, AttributeError):  # damaged: copied again
            continue
        kept[name] = record
    files = {file for record in kept.values() for file in record["files"]}
    for path in (working / STAGING).iterdir():
        if path.name not in files:
            path.unlink()
    return kept


def check_space(out: Path, networks: Mapping[str, FoundNetwork]) -> None:
    """Raise SourceError unless the disk of `out` has space for the networks that are still to be copied."""
    needed, free = sum(network.nbytes for network in networks.values()), shutil.disk_usage(out.parent).free
    if needed > free:
        raise SourceError(f"{out.parent}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def copy_networks(
    working: Path,
    networks: Mapping[str, FoundNetwork],
    records: dict[str, NetworkRecord],
    max_file_bytes: int,
    progress: ProgressCallback,
) -> None:
    """Copy and record networks not copied yet."""
    total = sum(network.source_bytes for name, network in networks.items() if name not in records)
    done = 0
    for name, network in networks.items():
        if name in records:
            continue

        def on_bytes(count: int, name: str = name) -> None:
            nonlocal done
            done += count
            progress(name, done, total)

        made_from = _made_from(network, max_file_bytes)
        files, hashes = copy_network(
            working / STAGING, name, network.tensors, network.sources, max_file_bytes, on_bytes
        )
        records[name] = {
            "made_from": made_from,
            "files": {file: describe_file(working / STAGING / file) for file in files},
            "sources": [
                {"file": file, "sha256": digest, "bytes": network.sources[file].stat().st_size}
                for file, digest in hashes.items()
            ],
        }
        part = working / "record.json.part"
        part.write_text(json.dumps(records))
        part.rename(working / _RECORD)


def _made_from(network: FoundNetwork, max_file_bytes: int) -> dict[str, Any]:
    """Everything that determines the copy of a network."""
    keys = [[tensor.key, tensor.dtype, tensor.source.shape] for tensor in network.tensors]
    stats = {name: path.stat() for name, path in network.sources.items()}
    return {
        "version": _RECORD_VERSION,
        "keys": hashlib.sha256(json.dumps(keys).encode()).hexdigest(),
        "max_file_bytes": max_file_bytes,
        "sources": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
