"""The archive of a .sog file: `meta.json` and its images, read with every size checked before it is unpacked."""

import io
import json
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffsplat_client.extras import require
from diffsplat_client.formats.packing import MAX_SPLATS

if TYPE_CHECKING:  # imported where it is used, so that importing the client stays quick
    import zipfile

META, _MAX_META_BYTES = "meta.json", 1 << 20
_TABLE = 256  # entries of a codebook


class Meta(NamedTuple):
    """The numbers of `meta.json`."""

    splats: int
    mins: list[float]  # of positions, on their logarithmic scale
    maxs: list[float]
    log_scales: list[float]  # the tables
    colors: list[float]
    files: dict[str, str]  # attribute -> name of its image


def read_archive(data: bytes) -> tuple[Meta, dict[str, np.ndarray]]:
    """The numbers, and the pixels uint8 [N, 4] of means_l, means_u, quats, scales and sh0.

    Raises:
        ValueError: naming what is wrong with the file.
        ModuleNotFoundError: Pillow is not installed; the message says how to install it.
    """
    import zipfile

    require("PIL.Image", "formats", ".sog")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            meta = _parse(_member(archive, META, _MAX_META_BYTES))
            images = {
                name: _pixels(_member(archive, file, len(data)), meta.splats, file) for name, file in meta.files.items()
            }
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"sog: not a complete zip archive: {error}") from None
    return meta, images


def _member(archive: "zipfile.ZipFile", name: str, limit: int) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"sog: the archive holds no {name}") from None
    if info.file_size > limit:
        raise ValueError(f"sog: {name} unpacks to {info.file_size} bytes: must be {limit} or fewer")
    return archive.read(info)


def _parse(text: bytes) -> Meta:
    try:
        values = json.loads(text)
        if values.get("version") != 2:
            raise ValueError(f"sog: version = {values.get('version')!r}: must be 2")
        meta = Meta(
            splats=values["count"],
            mins=values["means"]["mins"],
            maxs=values["means"]["maxs"],
            log_scales=values["scales"]["codebook"],
            colors=values["sh0"]["codebook"],
            files={
                "means_l": values["means"]["files"][0],
                "means_u": values["means"]["files"][1],
                **{name: values[name]["files"][0] for name in ("quats", "scales", "sh0")},
            },
        )
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"sog: {META} lacks {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"sog: {META} is not JSON: {error}") from None
    if isinstance(meta.splats, bool) or not isinstance(meta.splats, int) or not 0 <= meta.splats <= MAX_SPLATS:
        raise ValueError(f"sog: count = {meta.splats!r:.80}: must be in 0 .. {MAX_SPLATS}")
    for name, numbers, length in (
        ("means.mins", meta.mins, 3),
        ("means.maxs", meta.maxs, 3),
        ("scales.codebook", meta.log_scales, _TABLE),
        ("sh0.codebook", meta.colors, _TABLE),
    ):
        if not _are_numbers(numbers, length):
            raise ValueError(f"sog: {name} = {numbers!r:.80}: must be {length} finite numbers")
    return meta


def _are_numbers(values: object, length: int) -> bool:
    if not isinstance(values, list) or len(values) != length:
        return False
    return all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e18 for v in values)


def _pixels(file: bytes, count: int, name: str) -> np.ndarray:
    """The first `count` pixels, uint8 [count, 4]; the size is looked at before anything is decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about large images: the bound is ours
            with Image.open(io.BytesIO(file), formats=["WEBP"]) as image:
                pixels = image.width * image.height
                if not count <= pixels <= 2 * MAX_SPLATS:
                    raise ValueError(f"sog: {name} has {pixels} pixels: must be in {count} .. {2 * MAX_SPLATS}")
                return np.asarray(image.convert("RGBA")).reshape(-1, 4)[:count]
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"sog: {name} is no complete WebP image: {type(error).__name__}") from None
