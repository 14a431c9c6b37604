"""The file formats that a server writes. To add one, write a module here and an entry in FORMATS.

Importing them needs numpy alone; a format that needs another package imports it when a file is written or read.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.extras import require
from diffsplat_client.formats.axes import OPENGL, THREEDGS, from_frame
from diffsplat_client.formats.glb import decode_glb, encode_glb
from diffsplat_client.formats.ply import decode_ply, encode_ply
from diffsplat_client.formats.ply_compat import decode_published, encode_published
from diffsplat_client.formats.sog import decode_sog, encode_sog
from diffsplat_client.formats.splat import decode_splat, encode_splat
from diffsplat_client.formats.spz import decode_spz, encode_spz
from diffsplat_client.formats.spz_container import GZIP_MAGIC, MAGIC
from diffsplat_client.formats.usdz import READER_MODULE, decode_usdz, encode_usdz


@dataclass(frozen=True)
class FileFormat:
    """One format of files."""

    name: str  # value of the request option `formats`
    file_name: str  # in a folder of results; unique to the format
    media_type: str
    frame: str  # its own axes, one of `axes.FRAMES`
    encode: Callable[[SplatCloud, str], bytes]  # (splats in our frame, frame of the file) -> the whole file
    decode: Callable[[bytes, str], SplatCloud]  # (file, its frame or "") -> splats; ValueError for a damaged file
    magic: bytes = b""  # first bytes of every file; none has no mark
    early: bytes = b""  # what the first 256 bytes hold besides, where another format begins with the same
    module: str = ""  # that writing and reading need beside numpy; it comes with the extra `formats`
    reader_module: str = ""  # that only reading needs: clients may lack it
    # The file has the splats as decoded, with quaternions of any length; tools that normalise them show another object.
    # Both opacity thresholds apply, as in the published script.
    as_decoded: bool = False

    @property
    def splats_too(self) -> bool:
        """Whether the server sends the splats themselves besides, since clients cannot take them from the file."""
        return self.as_decoded or bool(self.reader_module)

    @property
    def extension(self) -> str:
        """Of files, with the dot."""
        return PurePath(self.file_name).suffix

    def write(self, cloud: SplatCloud, frame: str = "") -> bytes:
        """The bytes of the file; `frame` as in a request, "" for the format's own axes."""
        return self.encode(cloud, frame or self.frame)

    def read(self, data: bytes, frame: str = "") -> SplatCloud:
        """Inverse of `write`; `frame` as in a request, "" for the axes that the file names, or else the format's own.

        Raises:
            ValueError: naming what is wrong with the file.
        """
        return self.decode(data, frame)


ZIP_MAGIC = b"PK\x03\x04"
_BYTES = "application/octet-stream"  # few formats of splats have a registered media type
PLY = FileFormat("ply", "splats.ply", _BYTES, THREEDGS, encode_ply, decode_ply, b"ply")
PLY_COMPAT = FileFormat(
    name="ply_compat",
    file_name="splats_compat.ply",
    media_type=_BYTES,
    frame=OPENGL,
    encode=lambda cloud, frame: encode_published(cloud),  # a request can only ask for our axes, which it has
    decode=lambda data, frame: from_frame(decode_published(data), frame or OPENGL),
    magic=b"ply",
    as_decoded=True,
)
SPLAT = FileFormat("splat", "splats.splat", _BYTES, THREEDGS, encode_splat, decode_splat)
SPZ = FileFormat("spz", "splats.spz", _BYTES, OPENGL, encode_spz, decode_spz, GZIP_MAGIC)
SPZ4 = FileFormat(
    "spz4", "splats_v4.spz", _BYTES, OPENGL, partial(encode_spz, version=4), decode_spz, MAGIC, module="zstandard"
)
GLB = FileFormat("glb", "splats.glb", "model/gltf-binary", OPENGL, encode_glb, decode_glb, b"glTF")
USDZ = FileFormat(
    name="usdz",
    file_name="splats.usdz",
    media_type="model/vnd.usdz+zip",
    frame=OPENGL,
    encode=encode_usdz,
    decode=decode_usdz,
    magic=ZIP_MAGIC,
    early=b".usd",
    reader_module=READER_MODULE,
)
SOG = FileFormat("sog", "splats.sog", _BYTES, THREEDGS, encode_sog, decode_sog, ZIP_MAGIC, module="PIL")
FORMATS = {format.name: format for format in (PLY, PLY_COMPAT, SPLAT, SPZ, SPZ4, GLB, USDZ, SOG)}
RAW = "raw"  # no file: the splats alone
FORMAT_CHOICES = (RAW, *FORMATS)


def check_installed(names: Iterable[str]) -> None:
    """ModuleNotFoundError if a package that a format needs is missing; the message says how to install it."""
    for name in names:
        if name != RAW and FORMATS[name].module:
            require(FORMATS[name].module, "formats", f"format {name!r}")
