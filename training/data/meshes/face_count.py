"""How many faces a file says it has, without loading it: a mesh that is too large is refused before it fills memory."""

import json
import re
import struct
from pathlib import Path
from typing import Any

_GL_TRIANGLES, _GL_STRIP = 4, 5
_OBJ_CHUNK = 1 << 24


def declared_faces(path: Path) -> int | None:
    """Faces of the file, before larger polygons are split; None where only loading it can tell.

    Raises:
        ValueError: the header is broken.
        OSError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix == ".obj":
        return _obj_faces(path)
    if suffix == ".stl":
        return _stl_faces(path)
    if suffix == ".ply":
        return _ply_faces(path)
    return _gltf_faces(_gltf_json(path))


def _obj_faces(path: Path) -> int:
    """Lines that begin with "f "."""
    count, tail = 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(_OBJ_CHUNK):
            text = tail + chunk
            count += text.count(b"\nf ") + text.count(b"\nf\t")
            tail = text[-2:]
    return count


def _stl_faces(path: Path) -> int | None:
    """The count of a binary file; text files begin with "solid" and carry none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(84)
    if len(head) < 84:
        return None
    count = int(struct.unpack("<I", head[80:84])[0])
    return count if size == 84 + 50 * count else None


def _ply_faces(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(1 << 16)
    match = re.search(rb"^element\s+face\s+(\d+)", head, re.MULTILINE)
    return int(match.group(1)) if match else 0


def _gltf_json(path: Path) -> dict[str, Any]:
    data = path.read_bytes() if path.suffix.lower() == ".gltf" else _glb_json(path)
    try:
        tree = json.loads(data)
    except ValueError as error:
        raise ValueError(f"its glTF JSON cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError("its glTF JSON is not an object")
    return tree


def _glb_json(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(20)
        if len(head) < 20 or head[:4] != b"glTF" or head[16:20] != b"JSON":
            raise ValueError("it is not a binary glTF 2.0 file")
        return file.read(struct.unpack("<I", head[12:16])[0])


def _gltf_faces(tree: dict[str, Any]) -> int:
    """Triangles of all primitives, each counted once however often it is placed."""
    try:
        count = 0
        for mesh in tree.get("meshes", ()):
            for primitive in mesh["primitives"]:
                accessor = primitive.get("indices", primitive["attributes"]["POSITION"])
                corners = int(tree["accessors"][accessor]["count"])
                mode = primitive.get("mode", _GL_TRIANGLES)
                count += corners // 3 if mode == _GL_TRIANGLES else max(corners - 2, 0) if mode == _GL_STRIP else 0
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"its glTF JSON has a broken mesh: {error!r}") from error
    return count
