"""Captions of objects in a CSV file, as Cap3D publishes them: `uid,caption`, no header, one line per object."""

import csv
from pathlib import Path


def read_captions(path: Path) -> dict[str, str]:
    """Captions by uid, in the order of the file; later columns are left out, a header named `uid` too.

    Raises:
        ValueError: the file is missing or empty, or a line has no caption or the uid of another one; the message names
            file and line.
    """
    if not path.is_file():
        raise ValueError(f"captions = {path}: no such file; it must hold lines `uid,caption`")
    captions: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        for fields in lines:
            if not fields or (lines.line_num == 1 and fields[0].strip().lower() in ("uid", "id")):
                continue
            uid, caption = fields[0].strip(), fields[1].strip() if len(fields) > 1 else ""
            if not uid or not caption:
                raise ValueError(f"{path}, line {lines.line_num}: must be `uid,caption`, is {','.join(fields)!r}")
            if captions.setdefault(uid, caption) != caption:
                raise ValueError(f"{path}, line {lines.line_num}: the object {uid!r} has another caption above")
    if not captions:
        raise ValueError(f"{path}: holds no captions")
    return captions
