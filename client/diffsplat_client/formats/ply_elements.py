"""The container format of .ply files: a text header and the elements that it names, binary or ASCII."""

from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

MAX_HEADER_BYTES = 64 * 1024
_TYPES = {
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
}
_ASCII = "ascii"
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", _ASCII: "<"}


@dataclass
class Element:
    """One kind of record: how many there are and what each holds, in order."""

    name: str
    count: int
    fields: dict[str, str] = field(default_factory=dict)  # name -> numpy type without byte order
    has_lists: bool = False  # records differ in length


@dataclass
class Header:
    """The header of a file."""

    format: str  # one of _BYTE_ORDERS
    elements: list[Element]
    comments: list[str]

    def element(self, name: str) -> Element | None:
        """The element of this name, if the file has it."""
        return next((element for element in self.elements if element.name == name), None)


def read_header(file: BinaryIO, path: str) -> Header:
    """Read up to the first record; ValueError names `path` and what is wrong."""
    if file.readline(8).strip() != b"ply":
        raise ValueError(f"{path}: not a .ply file")
    header = Header("", [], [])
    while True:
        line = file.readline(MAX_HEADER_BYTES + 1)
        if not line.endswith(b"\n") or file.tell() > MAX_HEADER_BYTES:
            raise ValueError(f"{path}: the header does not end within {MAX_HEADER_BYTES} bytes")
        text = line.decode("ascii", "replace").strip()
        if text == "end_header":
            break
        _read_line(header, text, path)
    if not header.format or header.element("vertex") is None:
        raise ValueError(f"{path}: the header names no {'element `vertex`' if header.format else 'format'}")
    return header


def _read_line(header: Header, text: str, path: str) -> None:
    def refuse(reason: str) -> ValueError:
        return ValueError(f"{path}: {text[:80]!r}: {reason}")

    match text.split():
        case ["comment", *_]:
            header.comments.append(text.removeprefix("comment").strip())
        case ["format", kind, "1.0"] if kind in _BYTE_ORDERS:
            header.format = kind
        case ["format", *_]:
            raise refuse(f"the format must be {', '.join(_BYTE_ORDERS)}, version 1.0")
        case ["element", name, count] if count.isascii() and count.isdigit():
            if header.element(name) is not None:
                raise refuse("there is such an element already")
            header.elements.append(Element(name, int(count)))
        case ["element", *_]:
            raise refuse("an element needs a name and a count")
        case ["property", *_] if not header.elements:
            raise refuse("a property must follow an element")
        case ["property", "list", count, kind, _] if count in _TYPES and kind in _TYPES:
            header.elements[-1].has_lists = True
        case ["property", kind, name] if kind in _TYPES:
            if name in header.elements[-1].fields:
                raise refuse("there is such a property already")
            header.elements[-1].fields[name] = _TYPES[kind]
        case ["property", *_]:
            raise refuse("not a property of a known type")
        case ["obj_info", *_] | []:
            pass
        case _:
            raise refuse("not a line of a .ply header")


def read_elements(file: BinaryIO, header: Header, names: tuple[str, ...], path: str) -> dict[str, np.ndarray]:
    """Structured arrays of the named elements; those before them are skipped, those after them are ignored.

    `file` must be at the end of the header. ValueError for lists in a named element, or in a binary one before it, and
    for a file that ends early.
    """
    body = file.read()
    lines = body.splitlines() if header.format == _ASCII else []
    found: dict[str, np.ndarray] = {}
    start = 0  # byte of a binary file, line of an ASCII one
    for element in header.elements:
        if element.has_lists and (element.name in names or header.format != _ASCII):
            raise ValueError(f"{path}: the element `{element.name}` has lists: they cannot be skipped or read")
        order = _BYTE_ORDERS[header.format]
        record = np.dtype([(name, order + kind) for name, kind in element.fields.items()])
        ascii_, wanted = header.format == _ASCII, element.name in names
        if ascii_ and wanted:
            found[element.name] = _ascii_records(lines, start, element, record, path)
        elif not ascii_:
            records = _binary_records(body, start, element, record, path)
            found |= {element.name: records} if wanted else {}
        if len(found) == len(names):
            return found
        start += element.count * (1 if ascii_ else record.itemsize)
    raise ValueError(f"{path}: no element `{next(name for name in names if name not in found)}`")


def _binary_records(body: bytes, start: int, element: Element, record: np.dtype, path: str) -> np.ndarray:
    if element.count * record.itemsize > len(body) - start:
        raise ValueError(
            f"{path}: the header promises {element.count} x `{element.name}` of {record.itemsize} bytes, "
            f"but {len(body) - start} bytes follow"
        )
    if not record.itemsize:  # no properties: nothing there to read
        return np.empty(0, record)
    return np.frombuffer(body, record, element.count, start)


def _ascii_records(lines: list[bytes], start: int, element: Element, record: np.dtype, path: str) -> np.ndarray:
    if element.count > len(lines) - start:
        raise ValueError(
            f"{path}: the header promises {element.count} x `{element.name}`, but {len(lines) - start} lines follow"
        )
    rows = [line.split() for line in lines[start : start + element.count]]
    width = len(element.fields)
    for number, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(f"{path}: `{element.name}` {number} has {len(row)} numbers: must have {width}")
    try:
        values = np.array(rows, dtype=np.float64).reshape(len(rows), width)
    except ValueError:
        raise ValueError(f"{path}: an element `{element.name}` has a value that is not a number") from None
    records = np.empty(len(rows), record)
    for i, name in enumerate(element.fields):
        records[name] = values[:, i]
    return records
