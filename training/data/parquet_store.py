"""Records in parquet files: a row per object, a column per part.

That is the packing of the published training data. Reading a row means reading its row group, so neighbouring rows are
cheap to read together (`blocks`); files written here have one row per group.
"""

import functools
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.record import BrokenRecord
from training.data.storage import StorageError, replace_file

_GROUPS_KEPT = 16  # row groups in memory


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError("parquet files need pyarrow: pip install -e .[training]") from error
    return parquet


def write_parquet(path: Path, records: Iterable[Mapping[str, bytes]]) -> None:
    """Write records into a parquet file, one row group each; it appears whole or not at all.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    import pyarrow as pa

    parquet = _parquet()
    rows = list(records)
    names = list(dict.fromkeys(name for row in rows for name in row))
    schema = pa.schema([(name, pa.string() if name == "__key__" else pa.binary()) for name in names])

    def write(temporary: Path) -> None:
        with parquet.ParquetWriter(temporary, schema, compression="none") as writer:
            for row in rows:
                values = {name: [row[name].decode() if name == "__key__" and name in row else row.get(name)]
                          for name in names}  # fmt: skip
                writer.write_table(pa.table(values, schema))

    try:
        replace_file(path, write)
    except pa.ArrowException as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error


class ParquetStore:
    """All rows of the given files, in order."""

    def __init__(self, paths: Sequence[Path], root: Path) -> None:
        self.kind = "parquet"
        self.path = root
        self._paths = list(paths)
        self._groups: list[tuple[int, int]] = []  # file and row group
        self._rows: list[tuple[int, int]] = []  # of every record: entry of `_groups`, row in it
        self._blocks: list[range] = []
        self._uids: list[str] = []
        self._lock = threading.Lock()  # readers of one file share a position
        for number, path in enumerate(self._paths):
            file = _open(path)
            column = next((name for name in ("uid", "__key__") if name in file.schema_arrow.names), None)
            if column is None:
                raise ValueError(f"{path}: has no column uid or __key__, so it holds no objects")
            for group in range(file.num_row_groups):
                uids = file.read_row_group(group, columns=[column]).column(column).to_pylist()
                first = len(self._rows)
                self._rows += [(len(self._groups), row) for row in range(len(uids))]
                self._blocks.append(range(first, len(self._rows)))
                self._groups.append((number, group))
                self._uids += [uid.decode() if isinstance(uid, bytes) else str(uid) for uid in uids]
        self._file = functools.lru_cache(maxsize=64)(lambda number: _open(self._paths[number]))
        self._columns = functools.lru_cache(maxsize=_GROUPS_KEPT)(self._read_columns)
        self._absent = functools.lru_cache(maxsize=1024)(self._find_absent)

    def __len__(self) -> int:
        return len(self._rows)

    def uid(self, index: int) -> str:
        """Column `uid`, or `__key__` without it."""
        return self._uids[index]

    def parts(self, index: int) -> Collection[str]:
        """Columns that have a value in the record's row."""
        group, row = self._rows[index]
        absent = self._absent(group)
        return [name for name in self._names(group) if row not in absent.get(name, ())]

    def read(self, index: int, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the named parts that the record has."""
        group, row = self._rows[index]
        known = set(self._names(group))
        columns = self._columns(group, tuple(name for name in names if name in known))
        values = {name: column[row].as_py() for name, column in columns.items()}
        return {name: value for name, value in values.items() if value is not None}

    def blocks(self) -> Sequence[range] | None:
        """The row groups, unless each holds one row."""
        return self._blocks if len(self._blocks) < len(self._rows) else None

    def _names(self, group: int) -> list[str]:
        names: list[str] = self._file(self._groups[group][0]).schema_arrow.names
        return names

    def _read_columns(self, group: int, names: tuple[str, ...]) -> dict[str, Any]:
        number, row_group = self._groups[group]
        try:
            with self._lock:
                table = self._file(number).read_row_group(row_group, columns=list(names))
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            raise BrokenRecord(f"{self._paths[number]}, row group {row_group}: cannot be read: {error}") from error
        return {name: table.column(name) for name in names}

    def _find_absent(self, group: int) -> dict[str, set[int]]:
        """Rows without a value by column, of the columns that have such."""
        number, row_group = self._groups[group]
        facts = self._file(number).metadata.row_group(row_group)
        suspects = []
        for column in range(facts.num_columns):
            chunk = facts.column(column)
            if chunk.statistics is None or not chunk.statistics.has_null_count or chunk.statistics.null_count:
                suspects.append(chunk.path_in_schema)
        found = {}
        for name in suspects:
            values = self._read_columns(group, (name,))[name]
            found[name] = {row for row, valid in enumerate(values.is_valid().to_pylist()) if not valid}
        return found


def _open(path: Path) -> Any:
    try:
        return _parquet().ParquetFile(path, memory_map=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    except ValueError as error:
        if "pyarrow:" in str(error):
            raise
        raise ValueError(f"{path}: is not a readable parquet file: {error}") from error
