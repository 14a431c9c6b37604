"""Files of any format: told apart by their first bytes, else by their names, and written by the names' extensions."""

import os
from pathlib import Path

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.files import atomic_path
from diffsplat_client.formats import FORMATS, FileFormat

_HEAD_BYTES = 256  # of a file, which tell formats apart


def read_splats(path: str | os.PathLike[str], frame: str = "") -> SplatCloud:
    """Read a file of any format into our frame.

    Args:
        path: the file.
        frame: its axes, one of `axes.FRAMES`; "" for those that it names, or else its format's own.

    Raises:
        ValueError: naming the file and what is wrong with it.
        OSError: it cannot be read.
        ModuleNotFoundError: a package that the format needs is missing; the message says how to install it.
    """
    data = Path(path).read_bytes()
    try:
        return format_of(data, os.fspath(path)).read(data, frame)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def write_splats(path: str | os.PathLike[str], cloud: SplatCloud, frame: str = "", format: str = "") -> None:
    """Write a file in the format that its name ends with; it is either complete or absent.

    Args:
        path: the file.
        cloud: the splats, in our frame.
        frame: axes of the file, one of `axes.FRAMES`; "" for the format's own.
        format: name of the format, one of FORMATS; "" for the first whose files end like this one.

    Raises:
        ValueError: no such format, or splats that it cannot hold.
        ModuleNotFoundError: a package that the format needs is missing; the message says how to install it.
    """
    data = format_for(path, format).write(cloud, frame)
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def format_of(data: bytes, name: str) -> FileFormat:
    """The format of a file's content, or of its name where content has no mark; ValueError if neither is known."""
    for format in FORMATS.values():
        if format.magic and data.startswith(format.magic) and format.early in data[:_HEAD_BYTES]:
            return format
    unmarked = [format for format in FORMATS.values() if not format.magic]
    for format in unmarked:
        if Path(name).suffix.lower() == format.extension:
            return format
    known = ", ".join(sorted({format.extension for format in FORMATS.values()}))
    raise ValueError(f"no file of splats: begins with {data[:8]!r}: must be one of {known}")


def format_for(path: str | os.PathLike[str], name: str = "") -> FileFormat:
    """The format to write a file in; arguments and errors as for `write_splats`."""
    if name:
        if name not in FORMATS:
            raise ValueError(f"format = {name!r}: must be one of {', '.join(FORMATS)}")
        return FORMATS[name]
    suffix = Path(path).suffix.lower()
    for format in FORMATS.values():
        if format.extension == suffix:
            return format
    known = ", ".join(dict.fromkeys(format.extension for format in FORMATS.values()))
    raise ValueError(f"{os.fspath(path)}: ends with {suffix!r}: must be one of {known}")
