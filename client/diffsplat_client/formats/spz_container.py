"""The containers of .spz files: gzip around a header and sections, or a header, a table and zstd frames (version 4)."""

import struct
import zlib
from types import ModuleType
from typing import NamedTuple

import numpy as np

from diffsplat_client.extras import require
from diffsplat_client.formats.packing import MAX_SPLATS

MAGIC, GZIP_MAGIC = b"NGSP", b"\x1f\x8b\x08"
GZIP_LEVEL, ZSTD_LEVEL = 5, 3  # higher ones save a percent and take twice as long
_HEADER = struct.Struct("<4sIIBBBB")  # see Header; the last byte is 0 before version 4
_TABLE_PLACE = struct.Struct("<I12x")  # follows in version 4
_ROW = struct.Struct("<QQ")  # of the table, one per stream: compressed size, size
_GZIP_VERSIONS, _ZSTD_VERSION = (1, 2, 3), 4
_HARMONICS = (0, 9, 24, 45, 72)  # bytes of degrees 1 and higher, by degree
_HAS_EXTENSIONS = 2  # flag: records follow the sections, or the header of version 4
_DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this many times its size


class Header(NamedTuple):
    """What every version says."""

    version: int
    splats: int
    degree: int = 0  # of the spherical harmonics
    fraction_bits: int = 12  # of positions
    flags: int = 0
    streams: int = 0  # of version 4


class Sections(NamedTuple):
    """Attributes as stored: uint8 [N, bytes per splat]."""

    positions: np.ndarray  # 9 bytes; 6 in version 1
    alphas: np.ndarray  # 1
    colors: np.ndarray  # 3
    scales: np.ndarray  # 3
    rotations: np.ndarray  # 4; 3 before version 3


def pack_gzip(header: Header, sections: Sections) -> bytes:
    """A file of version 3 or less."""
    compressor = zlib.compressobj(GZIP_LEVEL, wbits=16 + zlib.MAX_WBITS)
    parts = [_head(header), *(section.tobytes() for section in sections)]
    return b"".join([*(compressor.compress(part) for part in parts), compressor.flush()])


def pack_zstd(header: Header, sections: Sections) -> bytes:
    """A file of version 4; ModuleNotFoundError without zstandard."""
    compressor = _zstandard().ZstdCompressor(level=ZSTD_LEVEL)
    parts = [section.tobytes() for section in sections]
    frames = [compressor.compress(part) for part in parts]
    head = _head(header._replace(streams=len(parts)))
    table = b"".join(_ROW.pack(len(frame), len(part)) for frame, part in zip(frames, parts, strict=True))
    return b"".join([head, _TABLE_PLACE.pack(_HEADER.size + _TABLE_PLACE.size), table, *frames])


def unpack(data: bytes) -> tuple[Header, Sections]:
    """Inverse of both; ValueError says what is wrong with the file. Harmonics are dropped."""
    if data.startswith(GZIP_MAGIC):
        header, parts = _unpack_gzip(data)
    elif data.startswith(MAGIC):
        header, parts = _unpack_zstd(data)
    else:
        raise ValueError(f"spz: begins with {data[:4]!r}: must be {MAGIC!r}, or gzip around it")
    widths = _widths(header)[: len(Sections._fields)]
    arrays = [
        np.frombuffer(part, np.uint8).reshape(header.splats, width) for part, width in zip(parts, widths, strict=False)
    ]
    return header, Sections(*arrays)


def _head(header: Header) -> bytes:
    return _HEADER.pack(MAGIC, *header)


def _read_header(data: bytes, versions: tuple[int, ...]) -> Header:
    if len(data) < _HEADER.size:
        raise ValueError(f"spz: ends after {len(data)} bytes: the header has {_HEADER.size}")
    magic, *values = _HEADER.unpack_from(data)
    header = Header(*values)
    if magic != MAGIC:
        raise ValueError(f"spz: begins with {magic!r}: must be {MAGIC!r}")
    allowed = {
        "version": (min(versions), max(versions)),
        "splats": (0, MAX_SPLATS),
        "degree": (0, len(_HARMONICS) - 1),
        "fraction_bits": (0, 23),
    }
    for name, (low, high) in allowed.items():
        if not low <= (value := getattr(header, name)) <= high:
            raise ValueError(f"spz: {name} = {value}: must be in {low} .. {high}")
    return header


def _widths(header: Header) -> tuple[int, ...]:
    """Bytes per splat of every section, of the harmonics last."""
    return 6 if header.version == 1 else 9, 1, 3, 3, 3 if header.version < 3 else 4, _HARMONICS[header.degree]


def _unpack_gzip(data: bytes) -> tuple[Header, list[bytes]]:
    stream = _Inflation(data)
    header = _read_header(stream.read(_HEADER.size), _GZIP_VERSIONS)
    sizes = [header.splats * width for width in _widths(header)]
    if sum(sizes) > _DEFLATE_RATIO * len(data):
        raise ValueError(f"spz: the header promises {header.splats} splats, which {len(data)} bytes cannot hold")
    parts = [stream.read(size) for size in sizes]
    if sum(map(len, parts)) < sum(sizes):
        found = sum(map(len, parts))
        raise ValueError(f"spz: the header promises {header.splats} splats in {sum(sizes)} bytes, but {found} follow")
    if not header.flags & _HAS_EXTENSIONS and (stream.read(1) or not stream.ended):
        raise ValueError(f"spz: the file does not end after its {header.splats} splats")
    return header, parts


class _Inflation:
    """Reads a gzip stream piece by piece, so that no more is unpacked than a header promises."""

    def __init__(self, data: bytes) -> None:
        self._rest = data
        self._stream = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def read(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end."""
        if not size:  # zlib takes 0 for no limit
            return b""
        try:
            piece = self._stream.decompress(self._rest, size)
        except zlib.error as error:
            raise ValueError(f"spz: the gzip stream is damaged: {error}") from None
        self._rest = self._stream.unconsumed_tail
        return piece

    @property
    def ended(self) -> bool:
        return self._stream.eof


def _unpack_zstd(data: bytes) -> tuple[Header, list[bytes]]:
    header = _read_header(data, (_ZSTD_VERSION,))
    sizes = [header.splats * width for width in _widths(header)]
    if not header.degree and header.streams == len(sizes) - 1:
        sizes.pop()  # no harmonics, no stream
    if header.streams != len(sizes):
        raise ValueError(f"spz: streams = {header.streams}: must be {len(sizes)}")
    if len(data) < _HEADER.size + _TABLE_PLACE.size:
        raise ValueError(f"spz: ends after {len(data)} bytes: within the header")
    (table,) = _TABLE_PLACE.unpack_from(data, _HEADER.size)
    start = table + len(sizes) * _ROW.size
    if table < _HEADER.size + _TABLE_PLACE.size or start > len(data):
        raise ValueError(f"spz: the table is at byte {table} of {len(data)}")
    parts = []
    for number, size in enumerate(sizes):
        packed, unpacked = _ROW.unpack_from(data, table + number * _ROW.size)
        if unpacked != size:
            raise ValueError(
                f"spz: stream {number} unpacks to {unpacked} bytes: must be {size} for {header.splats} splats"
            )
        if packed > len(data) - start:
            raise ValueError(f"spz: stream {number} has {packed} bytes, but {len(data) - start} follow")
        parts.append(_unpack_frame(data[start : start + packed], size, number))
        start += packed
    return header, parts


def _unpack_frame(frame: bytes, size: int, number: int) -> bytes:
    zstandard = _zstandard()
    try:
        # the frame's own promise is checked before it is believed; -1 is none
        if zstandard.frame_content_size(frame) not in (-1, size):
            raise ValueError(f"spz: stream {number} does not unpack to the {size} bytes that the table promises")
        part = bytes(zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)) if size else b""
    except zstandard.ZstdError as error:
        raise ValueError(f"spz: stream {number} is damaged: {error}") from None
    if len(part) != size:
        raise ValueError(f"spz: stream {number} unpacks to {len(part)} bytes: must be {size}")
    return part


def _zstandard() -> ModuleType:
    return require("zstandard", "formats", ".spz of version 4")
