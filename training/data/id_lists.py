"""Lists of objects, and the names under which an object is found in them."""

import csv
import json
from pathlib import Path


def read_ids(path: Path, field: str) -> list[str]:
    """Ids of a file, in its order: JSON (a list, or the keys of an object), CSV (first column) or one per line.

    Raises:
        ValueError: the file is missing, empty or not of this form; the message names field and file.
    """
    if not path.is_file():
        raise ValueError(f"{field} = {path}: no such file; it must list ids")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        try:
            entries = list(json.loads(text))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{field} = {path}: is not a JSON list of ids: {error}") from error
    elif path.suffix == ".csv":
        rows = [row for row in csv.reader(text.splitlines()) if row]
        entries = [row[0] for row in rows if row[0].strip().lower() not in ("uid", "id")]
    else:
        entries = text.splitlines()
    ids = [str(entry).strip() for entry in entries if str(entry).strip()]
    if not ids:
        raise ValueError(f"{field} = {path}: holds no ids")
    return ids


def names_of(uid: str, uid_map: dict[str, str]) -> tuple[str, ...]:
    """Names of an object, most exact first: its id, what the map makes of it, and the last part of each.

    Published lists name an object by the last part of its path, without the file's extension.
    """
    full = [uid, *([uid_map[uid]] if uid in uid_map else [])]
    return tuple(dict.fromkeys([*full, *(short_name(name) for name in full)]))


def short_name(uid: str) -> str:
    """The last part of an id's path, without an extension of mesh files."""
    name = uid.rpartition("/")[2]
    stem, dot, extension = name.rpartition(".")
    return stem if dot and extension in ("glb", "gltf", "obj", "parquet", "tar") else name


def read_uid_map(path: Path) -> dict[str, str]:
    """A JSON object from ids to ids, such as GObjaverse's index of Objaverse files.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"data.uid_map = {path}: cannot be read as JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"data.uid_map = {path}: must be an object from ids to ids")
    return {str(name): str(value) for name, value in entries.items()}
