"""OpenUSD's binary files ("crates", .usdc), version 0.8: written as far as one prim with arrays needs them.

A header, the values that do not fit into 8 bytes, six sections that say what they are, and a table of the sections:

    TOKENS      every name, once; others refer to names by their numbers
    STRINGS     none
    FIELDS      pairs of a name and a value: its type and the value itself, or where it is in the file
    FIELDSETS   the fields of one thing after the other
    PATHS       the tree: the root, the prim, its attributes
    SPECS       of every path its fields and what it is

Sections are stored as LZ4 blocks; ours hold literals alone, which every reader of LZ4 takes.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

_VERSION = (0, 8, 0)
_ARRAY, _INLINED = 1 << 63, 1 << 62  # of a value: an array; the value itself and not where it is
_INT, _FLOAT, _DOUBLE, _TOKEN, _QUATF, _VEC3F, _TOKEN_VECTOR, _SPECIFIER, _VARIABILITY = 3, 8, 9, 11, 17, 24, 41, 42, 44
_ARRAY_TYPES = {"float[]": _FLOAT, "float3[]": _VEC3F, "point3f[]": _VEC3F, "quatf[]": _QUATF}
_DEF, _UNIFORM = 0, 1  # values of a specifier and of a variability
_ATTRIBUTE, _PRIM, _PSEUDO_ROOT = 1, 6, 7  # kinds of specs
_END = 0xFFFFFFFF  # of a set of fields
_CHILD_ONLY, _SIBLING_ONLY, _LEAF = -1, 0, -2  # what follows a path in the tree


class Attribute(NamedTuple):
    """One attribute of the prim; those with a single value are uniform."""

    name: str
    type: str  # a name of USD's types: an array's, "int" or "token"
    value: np.ndarray | int | str  # quaternions as (x, y, z, w)


def encode_crate(stage: Mapping[str, float | str], prim: str, schema: str, attributes: list[Attribute]) -> bytes:
    """A file with one prim below its root, which is the default one.

    Args:
        stage: metadata, numbers that float32 holds exactly, and tokens.
        prim: its name.
        schema: its type.
        attributes: those that it has.
    """
    crate = _Crate()
    names = [attribute.name for attribute in attributes]
    root = {"defaultPrim": crate.token_value(prim), "primChildren": crate.token_vector([prim])}
    for key, fact in stage.items():
        root[key] = crate.token_value(fact) if isinstance(fact, str) else crate.double(fact)
    crate.add("", _PSEUDO_ROOT, root)
    about = {"specifier": _inlined(_SPECIFIER, _DEF), "typeName": crate.token_value(schema)}
    crate.add(prim, _PRIM, about | {"properties": crate.token_vector(names)})
    for name, type_name, value in attributes:
        fields = {"typeName": crate.token_value(type_name)}
        if isinstance(value, np.ndarray):
            fields["default"] = crate.array(_ARRAY_TYPES[type_name], value)
        else:
            fields["variability"] = _inlined(_VARIABILITY, _UNIFORM)
            fields["default"] = crate.token_value(value) if isinstance(value, str) else _inlined(_INT, value)
        crate.add(name, _ATTRIBUTE, fields)
    return crate.file()


class _Crate:
    """A file as it grows: specs in the order of the tree, their values behind each other."""

    def __init__(self) -> None:
        self._tokens = {"": 0}  # a property's name must not have the number 0
        self._parts: list[bytes] = [bytes(_HEADER.size)]  # of the file; the header comes at last
        self._size = _HEADER.size
        self._fields: list[tuple[int, int]] = []  # token, value
        self._sets: list[int] = []
        self._specs: list[tuple[int, int, int]] = []  # token of the path's last part, its set, its kind

    def add(self, name: str, kind: int, fields: Mapping[str, int]) -> None:
        """One spec."""
        self._specs.append((self._token(name), len(self._sets), kind))
        self._sets += range(len(self._fields), len(self._fields) + len(fields))
        self._sets.append(_END)
        self._fields += [(self._token(field), value) for field, value in fields.items()]

    def token_value(self, name: str) -> int:
        return _inlined(_TOKEN, self._token(name))

    def double(self, value: float) -> int:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        return _inlined(_DOUBLE, bits)

    def token_vector(self, names: list[str]) -> int:
        numbers = [self._token(name) for name in names]
        return _TOKEN_VECTOR << 48 | self._put(struct.pack(f"<Q{len(numbers)}I", len(numbers), *numbers))

    def array(self, kind: int, values: np.ndarray) -> int:
        """Rows of little-endian numbers."""
        place = self._put(struct.pack("<Q", len(values)), values.tobytes()) if len(values) else 0
        return _ARRAY | kind << 48 | place

    def file(self) -> bytes:
        """The whole file, once everything has been added."""
        sections = {
            "TOKENS": self._token_section(),
            "STRINGS": struct.pack("<Q", 0),
            "FIELDS": self._field_section(),
            "FIELDSETS": struct.pack("<Q", len(self._sets)) + _integers(self._sets),
            "PATHS": self._path_section(),
            "SPECS": self._spec_section(),
        }
        table = [struct.pack("<Q", len(sections))]
        for name, section in sections.items():
            table.append(struct.pack("<16sqq", name.encode(), self._put(section), len(section)))
        end = self._put(*table)
        self._parts[0] = _HEADER.pack(b"PXR-USDC", bytes(_VERSION), end)
        return b"".join(self._parts)

    def _token(self, name: str) -> int:
        return self._tokens.setdefault(name, len(self._tokens))

    def _put(self, *parts: bytes) -> int:
        """Append at the next multiple of 8; the place."""
        place = -(-self._size // 8) * 8
        self._parts += [bytes(place - self._size), *parts]
        self._size = place + sum(map(len, parts))
        return place

    def _token_section(self) -> bytes:
        text = b"".join(name.encode() + b"\0" for name in self._tokens)
        packed = _lz4(text)
        return struct.pack("<QQQ", len(self._tokens), len(text), len(packed)) + packed

    def _field_section(self) -> bytes:
        values = _lz4(struct.pack(f"<{len(self._fields)}Q", *(value for _, value in self._fields)))
        head = struct.pack("<Q", len(self._fields)) + _integers(token for token, _ in self._fields)
        return head + struct.pack("<Q", len(values)) + values

    def _path_section(self) -> bytes:
        count = len(self._specs)
        elements = [token if kind != _ATTRIBUTE else -token for token, _, kind in self._specs]
        jumps = [_CHILD_ONLY, _CHILD_ONLY, *[_SIBLING_ONLY] * (count - 3), _LEAF]
        return struct.pack("<QQ", count, count) + _integers(range(count)) + _integers(elements) + _integers(jumps)

    def _spec_section(self) -> bytes:
        _, sets, kinds = zip(*self._specs, strict=True)
        return struct.pack("<Q", len(kinds)) + _integers(range(len(kinds))) + _integers(sets) + _integers(kinds)


_HEADER = struct.Struct("<8s8sq64x")  # mark, version, where the table of sections is


def _inlined(kind: int, value: int) -> int:
    return _INLINED | kind << 48 | value


def _integers(values: Iterable[int]) -> bytes:
    """32-bit integers as crates store them, with their size in front: what each adds to the one before it.

    Two bits for each say how long the number is; here all have four bytes.
    """
    numbers = np.array([*values], np.int64).astype(np.uint32)
    deltas = np.diff(numbers, prepend=np.uint32(0)).astype("<u4")
    packed = _lz4(bytes(4) + b"\xff" * ((2 * len(numbers) + 7) // 8) + deltas.tobytes())
    return struct.pack("<Q", len(packed)) + packed


def _lz4(data: bytes) -> bytes:
    """One LZ4 block of literals, after the byte that says so."""
    beyond = len(data) - 15
    if beyond < 0:
        return bytes((0, len(data) << 4)) + data
    return b"\0\xf0" + b"\xff" * (beyond // 255) + bytes((beyond % 255,)) + data
