"""glTF files in one piece (.glb), read with every number checked: the description as JSON, and arrays of its buffer."""

import json
import struct
from typing import Any

import numpy as np

_HEADER, _CHUNK = struct.Struct("<4sII"), struct.Struct("<I4s")
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


class Json:
    """A JSON object and where it is, so that messages can name it."""

    def __init__(self, values: Any, path: str) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"glb: {path or 'the description'} is no JSON object")
        self._values = values
        self.path = path

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        return name in self._values

    def names(self) -> list[str]:
        """Of its members."""
        return list(self._values)

    def child(self, name: str, optional: bool = False) -> "Json":
        """The object of this name; an empty one if `optional` and missing."""
        if optional and name not in self._values:
            return Json({}, self._path(name))
        return Json(self._values.get(name), self._path(name))

    def items(self, name: str) -> list[Any]:
        """The array of this name, empty if missing."""
        values = self._values.get(name, [])
        if not isinstance(values, list):
            raise ValueError(f"glb: {self._path(name)} is no JSON array")
        return values

    def text(self, name: str) -> str:
        """The string of this name."""
        if not isinstance(value := self._values.get(name), str):
            raise ValueError(f"glb: {self._path(name)} = {_short(value)}: must be a string")
        return value

    def flag(self, name: str) -> bool:
        """The truth value of this name, False if missing."""
        return self._values.get(name, False) is True

    def whole(self, name: str, default: int | None = None, high: int = 2**53) -> int:
        """The number of this name in 0 .. high."""
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
            raise ValueError(f"glb: {self._path(name)} = {_short(value)}: must be a whole number in 0 .. {high}")
        return value

    def numbers(self, name: str, count: int) -> np.ndarray | None:
        """The float64 [count] of this name, None if missing."""
        if name not in self._values:
            return None
        values = self.items(name)
        if len(values) != count or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            raise ValueError(f"glb: {self._path(name)} = {_short(values)}: must be {count} numbers")
        try:
            array = np.array(values, np.float64)
        except OverflowError:  # an integer of hundreds of digits
            array = np.full(count, np.inf)
        if not (np.abs(array) < 1e18).all():
            raise ValueError(f"glb: {self._path(name)} = {_short(values)}: must be numbers of less than 1e18")
        return array

    def _path(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


class Document(Json):
    """A whole file."""

    def __init__(self, values: Any, binary: bytes) -> None:
        super().__init__(values, "")
        self.binary = binary

    @classmethod
    def parse(cls, data: bytes) -> "Document":
        """Split a file; ValueError if it is not a complete .glb of version 2."""
        if len(data) < _HEADER.size or not data.startswith(b"glTF"):
            raise ValueError(f"glb: begins with {data[:4]!r} and has {len(data)} bytes: must begin with b'glTF'")
        _, version, length = _HEADER.unpack_from(data)
        if version != 2:
            raise ValueError(f"glb: version = {version}: must be 2")
        if length > len(data):
            raise ValueError(f"glb: the header promises {length} bytes, but the file has {len(data)}")
        chunks: list[tuple[bytes, bytes]] = []
        place = _HEADER.size
        while place < length and len(chunks) < 2:
            if place + _CHUNK.size > length:
                raise ValueError(f"glb: the file ends within the header of a chunk, at byte {place}")
            size, kind = _CHUNK.unpack_from(data, place)
            place += _CHUNK.size
            if size > length - place:
                raise ValueError(f"glb: a chunk promises {size} bytes, but {length - place} follow")
            chunks.append((kind, data[place : place + size]))
            place += size
        if not chunks or chunks[0][0] != b"JSON":
            raise ValueError("glb: the first chunk is not JSON")
        try:
            values = json.loads(chunks[0][1])
        except (ValueError, RecursionError):
            raise ValueError("glb: the first chunk is not JSON") from None
        return cls(values, chunks[1][1] if len(chunks) > 1 and chunks[1][0] == b"BIN\0" else b"")

    def item(self, kind: str, number: int) -> Json:
        """One object of an array of the description."""
        items = self.items(kind)
        if number >= len(items):
            raise ValueError(f"glb: {kind}[{number}] is asked for, but there are {len(items)}")
        return Json(items[number], f"{kind}[{number}]")

    def accessor(self, attributes: Json, name: str, kind: str) -> np.ndarray:
        """An attribute as float32 [count, width]; integers are scaled to [0, 1] or [-1, 1] where they are normalised.

        Args:
            attributes: name -> number of the accessor.
            name: which.
            kind: the type it must have, such as VEC3.
        """
        about = self.item("accessors", attributes.whole(name))
        if (found := about.text("type")) != kind:
            raise ValueError(f"glb: {about.path}.type = {found!r}: must be {kind!r} for {name}")
        component = about.whole("componentType")
        if component not in _COMPONENTS:
            raise ValueError(f"glb: {about.path}.componentType = {component}: must be one of {[*_COMPONENTS]}")
        if about.has("sparse") or not about.has("bufferView"):
            raise ValueError(f"glb: {about.path} is sparse or has no bufferView: such arrays are not read")
        dtype, width, count = np.dtype(_COMPONENTS[component]), _WIDTHS[kind], about.whole("count")
        view = self.item("bufferViews", about.whole("bufferView"))
        start, size = self._span(view)
        offset = about.whole("byteOffset", 0)
        stride = view.whole("byteStride", width * dtype.itemsize, high=252)
        needed = offset + max(count - 1, 0) * stride + (width * dtype.itemsize if count else 0)
        if needed > size or stride < width * dtype.itemsize:
            raise ValueError(f"glb: {about.path} needs {needed} bytes in steps of {stride}: {view.path} has {size}")
        stored: np.ndarray = np.ndarray((count, width), dtype, self.binary, start + offset, (stride, dtype.itemsize))
        if dtype.kind == "f" or not about.flag("normalized"):
            return stored.astype(np.float32)
        return np.maximum(stored / np.float32(np.iinfo(dtype).max), np.float32(-1))

    def _span(self, view: Json) -> tuple[int, int]:
        """First byte and size of a bufferView within the file's own buffer."""
        number = view.whole("buffer")
        if number or self.item("buffers", number).has("uri"):
            raise ValueError(f"glb: {view.path} is in another file or a data URI: only the file's own buffer is read")
        start, size = view.whole("byteOffset", 0), view.whole("byteLength")
        if start + size > len(self.binary):
            raise ValueError(f"glb: {view.path} ends at byte {start + size}, the buffer at {len(self.binary)}")
        return start, size


def _short(value: Any) -> str:
    return repr(value)[:80]
