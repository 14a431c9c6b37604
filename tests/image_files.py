"""Image files for requests: good ones of every kind that is taken, and some of what users send by mistake."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

SIDE = 48


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, channels: int = 3) -> Image.Image:
    """Around a colour of the seed's own."""
    random = np.random.default_rng(seed)
    colour, grain = random.integers(0, 192, channels), random.integers(0, 64, (SIDE, SIDE, channels))
    return Image.fromarray((colour + grain).astype(np.uint8))


def image(seed: int) -> bytes:
    """A PNG file."""
    return encoded(noise(seed))


def cmyk_image(seed: int) -> bytes:
    """A JPEG file for printers."""
    return encoded(noise(seed).convert("CMYK"), "JPEG")


def grey_16_bit_image(seed: int) -> bytes:
    """A PNG file of 16-bit grey, such as depth maps are."""
    rows = np.random.default_rng(seed).integers(0, 65536, (SIDE, SIDE)).astype(">u2")
    return _png(SIDE, 16, b"".join(b"\0" + row.tobytes() for row in rows))


def _png(side: int, bits: int, rows: bytes) -> bytes:
    """A PNG file of grey; `rows` begin with their filter byte."""
    head = struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _animated(kind: str) -> bytes:
    return encoded(noise(0), kind, save_all=True, append_images=[noise(1), noise(2)])


def _transparent() -> bytes:
    rgba = np.array(noise(0, 4))
    rgba[..., 3] = 0
    return encoded(Image.fromarray(rgba))


# name -> a file, and what the refusal says of a field
BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "no image": (b"a chair, please", "begins with b'a chair,': must be a PNG, JPEG or WebP file"),
    "a cut file": (image(0)[:-300], "cannot be read: must be a complete PNG, JPEG or WebP file"),
    "nothing": (b"", "has 0 bytes"),
    "too many pixels": (_png(50_000, 8, b""), "is 50000 x 50000 = 2500000000 pixels: at most"),
    "a tiny image": (encoded(Image.new("RGB", (15, 40))), "is 15 x 40 pixels: must be at least 16 x 16"),
    "an animated PNG": (_animated("PNG"), "is animated, 3 frames: must be one still image"),
    "an animated WebP": (_animated("WEBP"), "is animated, 3 frames: must be one still image"),
    "a transparent image": (_transparent(), "pixels have alpha 0: must show something"),
}
