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

    name: str  # as a request says it
    file_name: str  # of an object's file in the folder of results; no two formats share one
    media_type: str
    frame: str  # its own axes, one of `axes.FRAMES`
    encode: Callable[[SplatCloud, str], bytes]  # (splats in our frame, frame of the file) -> the whole file
    decode: Callable[[bytes], SplatCloud]  # inverse; ValueError for a damaged file
    # The file holds the splats as decoded, with quaternions of any length, of which tools that normalise them show
    # another object. So the canonical splats come beside it, and both opacity thresholds hold, as published.
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
    encode=lambda cloud, frame: encode_published(cloud),  # there are no other axes: a request can ask for ours alone
    decode=decode_published,
    as_decoded=True,
)
FORMATS = {format.name: format for format in (PLY, PLY_COMPAT)}
RAW = "raw"  # no file: the splats alone
FORMAT_CHOICES = (RAW, *FORMATS)


def file_format(name: str) -> FileFormat | None:
    """The format of a request's file, None when it asks for none."""
    return FORMATS.get(name)
