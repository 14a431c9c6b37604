"""Records in tar files: WebDataset shards and GObjaverse's own archives, read by position.

WebDataset: a member ``KEY.PART`` belongs to record KEY, which ends at the first dot of the file's name. GObjaverse: a
member ``OBJECT/campos_512_v4/00000/PART`` belongs to record OBJECT. The members of a record follow each other. An index
beside each tar file (``NAME.tar.index``) says where records start, so that any of them can be read at once; it is
written at the first use if it is missing or older than the file.
"""

import contextlib
import functools
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from training.data.record import BrokenRecord, record_uid
from training.data.storage import StorageError, replace_file

GOBJAVERSE_FOLDER = "campos_512_v4"
INDEX_SUFFIX = ".index"
_HEADERS_KEPT = 1024  # records whose list of members stays in memory


class _Place(NamedTuple):
    """Where a record lies."""

    uid: str
    start: int  # byte of its first header
    end: int


def write_tar(path: Path, records: Iterable[Mapping[str, bytes]]) -> None:
    """Write records into a WebDataset shard with its index; it appears whole or not at all.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    places: list[_Place] = []

    def write(temporary: Path) -> None:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for record in records:
                start = tar.offset
                uid = record_uid(record)
                for name, data in record.items():
                    if name != "__key__":
                        info = tarfile.TarInfo(f"{_key_of(uid)}.{name}")
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                places.append(_Place(uid, start, tar.offset))

    replace_file(path, write)
    _write_index(path, places)


class TarStore:
    """All records of the given tar files, in order."""

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.kind = "tar"
        self.path = root
        self._places = [(path, place) for path in paths for place in read_index(path, root)]
        self._members = functools.lru_cache(maxsize=_HEADERS_KEPT)(self._read_members)

    def __len__(self) -> int:
        return len(self._places)

    def uid(self, index: int) -> str:
        """The object's id: part `uid` of the record, else the name of its members."""
        return self._places[index][1].uid

    def parts(self, index: int) -> Mapping[str, tuple[int, int]]:
        """Names of the record's parts."""
        return self._members(index)

    def read(self, index: int, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the named parts that the record has."""
        path, _ = self._places[index]
        members = self._members(index)
        with _opened(path) as file:
            return {name: _read(file, path, *members[name]) for name in names if name in members}

    def blocks(self) -> None:
        """Every record is as cheap alone."""

    def _read_members(self, index: int) -> dict[str, tuple[int, int]]:
        """Offset and size of every part."""
        path, place = self._places[index]
        with _opened(path) as file:
            file.seek(place.start)
            return {_split(info.name)[1]: (info.offset_data, info.size) for info in _members_of(file, path, place.end)}


def read_index(path: Path, root: Path) -> list[_Place]:
    """Places of a tar file's records, from its index, or by reading all headers.

    Raises:
        BrokenRecord: the file is not a tar file.
    """
    index = path.with_name(path.name + INDEX_SUFFIX)
    try:
        stored = json.loads(index.read_text())
        if stored["bytes"] == path.stat().st_size and index.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            return [_Place(*entry) for entry in stored["records"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: made again
    places = _scan(path, root)
    with contextlib.suppress(StorageError):  # a folder that cannot be written: read again next time
        _write_index(path, places)
    return places


def _write_index(path: Path, places: Sequence[_Place]) -> None:
    text = json.dumps({"bytes": path.stat().st_size, "records": places})
    replace_file(path.with_name(path.name + INDEX_SUFFIX), lambda temporary: temporary.write_text(text))


def _scan(path: Path, root: Path) -> list[_Place]:
    """Places of all records; one that the file's end cuts short is among them, and broken when it is read."""
    places: list[_Place] = []
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        open_key, start, end, uid = None, 0, 0, ""
        try:
            for info in _members_of(file, path, size):
                key, part = _split(info.name)
                if key != open_key:
                    if open_key is not None:
                        places.append(_Place(uid, start, info.offset))
                    open_key, start, uid = key, info.offset, _uid_of(key, info.name, path, root)
                if part == "uid":
                    uid = _read(file, path, info.offset_data, info.size).decode()
                end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        except BrokenRecord:
            if open_key is None:
                raise
        if open_key is not None:
            places.append(_Place(uid, start, end))
    return places


def _members_of(file: BinaryIO, path: Path, end: int) -> Iterator[tarfile.TarInfo]:
    """Files of a tar from the present position up to byte `end`."""
    position = file.tell()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while position < end and (info := tar.next()) is not None:
                position = tar.offset
                if info.offset >= end:
                    return
                if info.isfile():
                    yield info
    except tarfile.TarError as error:
        raise BrokenRecord(f"{path}: is not a readable tar file: {error}") from error


def _split(name: str) -> tuple[str, str]:
    """Record and part of a member."""
    if f"/{GOBJAVERSE_FOLDER}/" in name:
        return name.split(f"/{GOBJAVERSE_FOLDER}/")[0], name.rpartition("/")[2]
    folder, slash, base = name.rpartition("/")
    stem, _, part = base.partition(".")
    return folder + slash + stem, part


def _uid_of(key: str, name: str, path: Path, root: Path) -> str:
    """Id of a record without a part `uid`: its key; GObjaverse's archives lie in a folder that belongs to the id."""
    if f"/{GOBJAVERSE_FOLDER}/" not in name or path == root:
        return key
    return (path.parent.relative_to(root) / key.rpartition("/")[2]).as_posix()


def _key_of(uid: str) -> str:
    """A member's name may hold no dot before its part."""
    return uid.replace(".", "_")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise BrokenRecord(f"{path}: cannot be read: {error.strerror}") from error


def _read(file: BinaryIO, path: Path, offset: int, size: int) -> bytes:
    data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise BrokenRecord(f"{path}: ends before byte {offset + size}; the file is cut short")
    return data
