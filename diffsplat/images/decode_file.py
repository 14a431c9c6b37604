"""Decode a user's PNG, JPEG or WebP file. Files are untrusted, so that everything is checked before decoding.

The result is upright RGB with straight alpha. Colour profiles are not applied, as in the reference.
Every refusal is an `InvalidRequestError` (a ValueError) that names the field, its value and what is allowed.
Axes: H W pixels of the file.
"""

import io
import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from diffsplat_client.errors import InvalidRequestError
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

MAX_IMAGE_FILE_BYTES = 32 * 2**20
MAX_PIXELS = 2**25  # 33.5 million, more than a phone's camera takes; 134 MB when decoded
MIN_SIDE = 16  # pixels
MAX_ASPECT = 16  # longer side / shorter side

_EXIF_ORIENTATION = 0x0112
_PNG_BIT_DEPTH = 24  # offset in the file: signature 8, chunk head 8, width 4, height 4
# raised by Pillow's readers on damaged files; the warning only if a caller turned warnings into errors
_DAMAGE = (
    OSError,  # UnidentifiedImageError too
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    UserWarning,
)


class DecodedImage(NamedTuple):
    """Pixels of a file. Integers represent 0 .. 1 by the range of their type, floats represent themselves."""

    rgb: np.ndarray  # [H, W, 3] uint8, uint16 or float32, not multiplied by alpha
    alpha: np.ndarray | None  # [H, W] of the same type; None when every pixel is opaque
    notes: tuple[str, ...] = ()  # remarks for the user on how the file was read


def read_image(data: bytes, field: str) -> DecodedImage:
    """Decode the bytes of a PNG, JPEG or WebP file.

    Palette, grey, CMYK and 16-bit files become RGB, EXIF orientation is applied.

    Args:
        data: the whole file.
        field: what messages call it.

    Raises:
        InvalidRequestError: empty, too large a file, too many pixels (by its header, before decoding), too small or too
            narrow, of another format, damaged, animated, or fully transparent.
    """
    if not data:
        raise InvalidRequestError(f"{field} has 0 bytes: must be a PNG, JPEG or WebP file")
    if len(data) > MAX_IMAGE_FILE_BYTES:
        raise InvalidRequestError(f"{field} has {len(data)} bytes: at most {MAX_IMAGE_FILE_BYTES} are allowed")
    try:
        image = _open(data, field)
        _check_head(image, field)
        image.load()
        pixels, alpha, notes = _decode(image, data, field)
        orientation, exif_notes = _orientation(image, field)
    except InvalidRequestError:
        raise
    except _DAMAGE:  # the library's own message is not passed on
        raise InvalidRequestError(
            f"{field} ({len(data)} bytes) cannot be read: must be a complete PNG, JPEG or WebP file"
        ) from None
    pixels = _upright(pixels, orientation)
    if alpha is None or alpha.min() == _white(alpha):
        return DecodedImage(pixels, None, notes + exif_notes)
    if alpha.max() == 0:
        raise InvalidRequestError(f"{field}: all {alpha.size} pixels have alpha 0: must show something")
    return DecodedImage(pixels, _upright(alpha, orientation), notes + exif_notes)


def _open(data: bytes, field: str) -> ImageFile:
    """Open the file with the reader that its first bytes select; only the header is read.

    Not `Image.open`: that has dozens of formats, and turns a photo with a second image (a gain map) into a sequence.
    """
    stream = io.BytesIO(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile(stream)
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile(stream)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_size(_webp_size(data), field)  # its reader allocates a canvas at once
        return WebPImageFile(stream)
    raise InvalidRequestError(f"{field} begins with {data[:8]!r}: must be a PNG, JPEG or WebP file")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header of the first chunk (RFC 9649)."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_size(size: tuple[int, int], field: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise InvalidRequestError(
            f"{field} is {width} x {height} = {width * height} pixels: at most {MAX_PIXELS} are allowed"
        )
    if min(size) < MIN_SIDE:
        raise InvalidRequestError(f"{field} is {width} x {height} pixels: must be at least {MIN_SIDE} x {MIN_SIDE}")
    if max(size) > MAX_ASPECT * min(size):
        raise InvalidRequestError(
            f"{field} is {width} x {height} pixels: one side may be at most {MAX_ASPECT} times the other"
        )


def _check_head(image: ImageFile, field: str) -> None:
    _check_size(image.size, field)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise InvalidRequestError(f"{field} is animated, {frames} frames: must be one still image")


def _decode(image: ImageFile, data: bytes, field: str) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Loaded image -> RGB [H, W, 3], alpha [H, W] or None, notes."""
    png_bits = data[_PNG_BIT_DEPTH] if isinstance(image, PngImageFile) else 8
    if png_bits == 16:
        return *_decode_16_bit(image, data), ()
    if image.mode == "CMYK":  # Pillow has already undone Adobe's inversion
        note = f"{field}: a CMYK file, converted without its colour profile: colours may look different"
        return np.asarray(image.convert("RGB")), None, (note,)
    if image.mode == "P" and image.palette is None:
        raise UnidentifiedImageError
    key = image.info.get("transparency")
    if png_bits in (2, 4) and image.mode == "L" and key is not None:
        image.info["transparency"] = key * (255 // (2**png_bits - 1))  # Pillow scales pixels to 8 bits, not the key
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB")), None, ()
    rgba = np.asarray(image.convert("RGBA"))
    return rgba[..., :3], rgba[..., 3], ()


def _decode_16_bit(image: ImageFile, data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Decode 16-bit files with OpenCV: Pillow clips 16-bit grey to white and halves the depth of 16-bit colour."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise UnidentifiedImageError
    if pixels.ndim == 2:
        key = image.info.get("transparency")
        alpha = None if key is None else np.where(pixels == key, 0, 65535).astype(np.uint16)
        return np.repeat(pixels[..., None], 3, axis=2), alpha
    return pixels[..., 2::-1], pixels[..., 3] if pixels.shape[2] == 4 else None


def _orientation(image: ImageFile, field: str) -> tuple[int, tuple[str, ...]]:
    """EXIF orientation 1 .. 8; damaged metadata are ignored with a note."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DAMAGE:
        return 1, (f"{field}: its EXIF data cannot be read, so it may lie on its side",)
    return (value, ()) if value in range(1, 9) else (1, ())


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: [H, W, ...] -> [H, W, ...] or [W, H, ...]."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _white(values: np.ndarray) -> float:
    """The number that represents 1.0."""
    return 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)


def unit_range(values: np.ndarray) -> np.ndarray:
    """Pixels or alpha of a `DecodedImage` as float32 in 0 .. 1."""
    return values.astype(np.float32) / np.float32(_white(values))


def to_bytes(image: DecodedImage) -> np.ndarray:
    """RGBA [H, W, 4] uint8, rounded, alpha straight."""
    parts = [image.rgb] if image.alpha is None else [image.rgb, image.alpha[..., None]]
    channels = [part if part.dtype == np.uint8 else np.rint(unit_range(part) * 255).astype(np.uint8) for part in parts]
    if image.alpha is None:
        channels.append(np.full((*image.rgb.shape[:2], 1), 255, np.uint8))
    return np.concatenate(channels, axis=2)
