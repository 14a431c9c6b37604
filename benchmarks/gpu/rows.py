"""What was measured: one row at a time, on disk as soon as it is known.

DIR/rows.jsonl    a line per row, appended and synced by the process that measures
DIR/results.json  all rows, the machine, and how each section ended; written anew after every section
DIR/results.md    the same as tables
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffsplat_client.files import atomic_path

ROWS, RESULTS, TABLE = "rows.jsonl", "results.json", "results.md"
Row = dict[str, Any]  # "section", then columns in the order in which they are shown


class RowLog:
    """Appends rows of one section."""

    def __init__(self, folder: Path, section: str) -> None:
        self._path = folder / ROWS
        self._section = section

    def add(self, **columns: Any) -> None:
        """Write a row, print it, and make sure that it survives a crash."""
        row = {"section": self._section, **columns}
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(
            f"  {self._section}: " + ", ".join(f"{name} {_cell(value)}" for name, value in columns.items()), flush=True
        )


def read_rows(folder: Path) -> list[Row]:
    """All complete rows; a crash may have cut off the last one."""
    lines = (folder / ROWS).read_text().splitlines() if (folder / ROWS).exists() else []
    return list(_complete(lines))


def _complete(lines: Sequence[str]) -> Iterator[Row]:
    for line in lines:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def write_results(folder: Path, sections: Sequence[Mapping[str, Any]]) -> None:
    """Rewrite both files.

    Args:
        folder: holds the rows.
        sections: "name", "ended" (how) and "seconds" of every section so far.
    """
    rows = read_rows(folder)
    with atomic_path(folder / RESULTS) as path:
        path.write_text(json.dumps({"sections": list(sections), "rows": rows}, indent=2) + "\n")
    with atomic_path(folder / TABLE) as path:
        path.write_text(markdown(sections, rows))


def markdown(sections: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """A table per section, with the columns that its rows have."""
    parts = ["# What a GPU showed"]
    for section in sections:
        parts.append(f"## {section['name']}: {section['ended']}, {section['seconds']:.0f} s")
        own = [row for row in rows if row["section"] == section["name"]]
        columns = [name for name in dict.fromkeys(name for row in own for name in row) if name != "section"]
        if columns:
            lines = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in own)]
            parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "/").replace("\n", " ")
