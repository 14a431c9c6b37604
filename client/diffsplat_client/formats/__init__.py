"""The file formats that a server writes, numpy alone. To add one, write a module here and an entry in FORMATS."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.axes import OPENGL, THREEDGS
from diffsplat_client.formats.ply import decode_ply, encode_ply
from diffsplat_client.formats.ply_compat import decode_published, encode_published


@dataclass(frozen=True)
class FileFormat:
    """One format of files."""

    name: str  # value of the request option `format`
    file_name: str  # in a folder of results; unique to the format
    media_type: str
    frame: str  # its own axes, one of `axes.FRAMES`
    encode: Callable[[SplatCloud, str], bytes]  # (splats in our frame, frame of the file) -> the whole file
    decode: Callable[[bytes], SplatCloud]  # inverse; ValueError for a damaged file
    # The file has the splats as decoded, with quaternions of any length; tools that normalise them show another object.
    # So the server sends the canonical splats too. Both opacity thresholds apply, as in the published script.
    as_decoded: bool = False

    @property
    def extension(self) -> str:
        """Of files, with the dot."""
        return PurePath(self.file_name).suffix

    def write(self, cloud: SplatCloud, frame: str = "") -> bytes:
        """The bytes of the file; `frame` as in a request, "" for the format's own axes."""
        return self.encode(cloud, frame or self.frame)


PLY = FileFormat("ply", "splats.ply", "application/octet-stream", THREEDGS, encode_ply, decode_ply)
PLY_COMPAT = FileFormat(
    name="ply_compat",
    file_name="splats_compat.ply",
    media_type="application/octet-stream",
    frame=OPENGL,
    encode=lambda cloud, frame: encode_published(cloud),  # a request can only ask for our axes, which it has
    decode=decode_published,
    as_decoded=True,
)
FORMATS = {format.name: format for format in (PLY, PLY_COMPAT)}
RAW = "raw"  # no file: the splats alone
FORMAT_CHOICES = (RAW, *FORMATS)


def file_format(name: str) -> FileFormat | None:
    """The file format with this name; None for `raw`."""
    return FORMATS.get(name)
