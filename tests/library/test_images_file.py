"""Image files from strangers: every format becomes the right pixels, everything else a refusal that says why."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffsplat_client.errors import InvalidRequestError
from PIL import Image

from diffsplat.images.decode_file import (
    MAX_IMAGE_FILE_BYTES,
    MAX_PIXELS,
    DecodedImage,
    read_image,
    to_bytes,
    unit_range,
)

SIDE = 24


def pixels(channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE + 8, channels), dtype=np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, color_type: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG file by hand; `rows` are all rows' bytes without filter bytes."""
    head = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    step = len(rows) // max(height, 1)
    filtered = b"".join(b"\0" + rows[i * step : (i + 1) * step] for i in range(height))
    body = b"".join(extra) + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def read(data: bytes) -> DecodedImage:
    return read_image(data, "IMAGE")


# --- what is read ---


@pytest.mark.parametrize("options", [{"kind": "PNG"}, {"kind": "WEBP", "lossless": True}])
def test_lossless_colour_is_read_exactly(options: dict[str, Any]) -> None:
    rgb = pixels()
    image = read(encode(Image.fromarray(rgb), **options))
    assert np.array_equal(image.rgb, rgb) and image.alpha is None and image.notes == ()


@pytest.mark.parametrize("options", [{"kind": "PNG"}, {"kind": "WEBP", "lossless": True, "exact": True}])
def test_alpha_stays_straight(options: dict[str, Any]) -> None:
    rgba = pixels(4)
    image = read(encode(Image.fromarray(rgba), **options))
    assert np.array_equal(image.rgb, rgba[..., :3])
    assert image.alpha is not None and np.array_equal(image.alpha, rgba[..., 3])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_are_close_and_within_0_and_1(kind: str) -> None:
    """The reference hands JPEG values on as 0 .. 255; here every file is 0 .. 1."""
    ramp = np.linspace(0, 255, SIDE * SIDE * 3).reshape(SIDE, SIDE, 3).astype(np.uint8)
    unit = unit_range(read(encode(Image.fromarray(ramp), kind, quality=95)).rgb)
    assert unit.dtype == np.float32 and 0 <= unit.min() and unit.max() <= 1
    assert np.abs(unit - ramp / 255).max() < 0.1


def test_opaque_alpha_is_no_alpha() -> None:
    rgba = pixels(4)
    rgba[..., 3] = 255
    assert read(encode(Image.fromarray(rgba))).alpha is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA"])
def test_grey_and_palette_files_become_rgb(mode: str) -> None:
    image = Image.fromarray(pixels()).convert("P" if mode == "PA" else mode)
    data = encode(image.convert("RGBA").quantize(16), transparency=3) if mode == "PA" else encode(image)
    image = read(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert np.array_equal(to_bytes(image), expected)
    assert (image.alpha is not None) == (mode == "PA")


def test_16_bit_grey_keeps_its_bits() -> None:
    """Pillow's own conversion clips it to white."""
    grey = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 100).astype(">u2")
    image = read(png(SIDE, SIDE, 16, 0, grey.tobytes()))
    assert image.rgb.dtype == np.uint16
    assert np.array_equal(image.rgb, np.repeat(grey[..., None], 3, axis=2))
    assert np.abs(to_bytes(image)[..., 0] / 255.0 - grey / 65535.0).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(("color_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_colour_and_alpha_keep_their_bits(color_type: int, channels: int) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (SIDE, SIDE, channels)).astype(">u2")
    image = read(png(SIDE, SIDE, 16, color_type, values.tobytes()))
    colours = np.repeat(values[..., :1], 3, axis=2) if channels == 2 else values[..., :3]
    assert np.array_equal(image.rgb, colours)
    if channels == 3:
        assert image.alpha is None
    else:
        assert image.alpha is not None and np.array_equal(image.alpha, values[..., -1])


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_grey_value_that_means_transparent(bits: int) -> None:
    """The key is of the file's depth, pixels are scaled to 8 bits."""
    levels = np.tile(np.arange(2**bits if bits < 8 else 4), SIDE)[: SIDE * SIDE]
    levels = np.resize(levels, (SIDE, SIDE))
    key = 3
    if bits == 16:
        rows = levels.astype(">u2").tobytes()
    else:
        packed = np.unpackbits(levels.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        rows = np.packbits(packed.reshape(SIDE, -1), axis=1).tobytes()
    image = read(png(SIDE, SIDE, bits, 0, rows, chunk(b"tRNS", struct.pack(">H", key))))
    assert image.alpha is not None and np.array_equal(image.alpha == 0, levels == key)
    assert np.allclose(unit_range(image.rgb)[..., 0], levels / (2**bits - 1))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_colour_that_means_transparent(bits: int) -> None:
    values = np.zeros((SIDE, SIDE, 3), ">u2" if bits == 16 else np.uint8)
    values[: SIDE // 2] = (1, 2, 3)
    image = read(png(SIDE, SIDE, bits, 2, values.tobytes(), chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))))
    assert image.alpha is not None and (image.alpha[: SIDE // 2] == 0).all()
    assert (image.alpha[SIDE // 2 :] == np.iinfo(image.alpha.dtype).max).all()


def test_cmyk_becomes_rgb_with_a_note() -> None:
    cmyk = Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0))  # full cyan
    image = read(encode(cmyk, "JPEG", quality=95))
    assert np.abs(image.rgb.astype(int) - (0, 255, 255)).max() <= 3
    assert len(image.notes) == 1 and image.notes[0].startswith("IMAGE: a CMYK file")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    """Against Pillow's transposition; red, green and blue quarters survive lossy coding."""
    upright = np.full((SIDE, 2 * SIDE, 3), 255, np.uint8)
    upright[:12, :24], upright[12:, :24], upright[:12, 24:] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(upright)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # Image.Transpose that stores it so
    if inverse is not None:
        stored = stored.transpose(Image.Transpose(inverse))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    image = read(encode(stored, kind, exif=exif.tobytes(), **options))
    assert image.rgb.shape == upright.shape
    assert np.abs(image.rgb.astype(int) - upright).max() <= (8 if kind == "JPEG" else 0)


def test_a_photo_with_a_second_image_is_a_still() -> None:
    """Phones put a gain map or a second eye behind the photo (MPO)."""
    first, second = (Image.fromarray(pixels(seed=seed)) for seed in (0, 1))
    data = encode(first, "MPO", save_all=True, append_images=[second])
    assert read(data).rgb.shape == (SIDE, SIDE + 8, 3)


def test_an_unknown_orientation_means_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    rgb = pixels()
    assert np.array_equal(read(encode(Image.fromarray(rgb), exif=exif.tobytes())).rgb, rgb)


# --- what is refused ---


def huge_png() -> bytes:
    return png(50_000, 50_000, 8, 2, b"")[:100]


def huge_webp(kind: bytes) -> bytes:
    side = 16_000
    if kind == b"VP8X":
        body = bytes(4) + (side - 1).to_bytes(3, "little") * 2
    elif kind == b"VP8L":
        body = b"\x2f" + (side - 1 | (side - 1) << 14).to_bytes(4, "little")
    else:
        body = b"\x30\x01\x00\x9d\x01\x2a" + side.to_bytes(2, "little") * 2
    data = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(data)) + data


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(3)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


def transparent(kind: str) -> bytes:
    rgba = pixels(4)
    rgba[..., 3] = 0
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    return encode(Image.fromarray(rgba), kind, **options)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"IMAGE has 0 bytes: must be a PNG, JPEG or WebP file"),
    "text": (lambda: b"a chair, please", r"IMAGE begins with b'a chair,': must be a PNG"),
    "gif": (lambda: encode(Image.new("P", (SIDE, SIDE)), "GIF"), r"IMAGE begins with b'GIF8.*must be a PNG"),
    "bmp": (lambda: encode(Image.new("RGB", (SIDE, SIDE)), "BMP"), r"must be a PNG, JPEG or WebP file"),
    "signature only": (lambda: b"\x89PNG\r\n\x1a\n", r"IMAGE \(8 bytes\) cannot be read"),
    "no width": (lambda: png(0, SIDE, 8, 2, b""), r"IMAGE .*(cannot be read|at least 16 x 16)"),
    "cut png": (lambda: encode(Image.fromarray(pixels()))[:-300], r"cannot be read: must be a complete"),
    "cut jpeg": (lambda: encode(Image.fromarray(pixels()), "JPEG")[:-300], r"cannot be read: must be a complete"),
    "cut webp": (lambda: encode(Image.fromarray(pixels()), "WEBP")[:-300], r"cannot be read: must be a complete"),
    "no palette": (lambda: png(SIDE, SIDE, 8, 3, bytes(SIDE * SIDE)), r"cannot be read"),
    "cut 16 bit": (lambda: png(SIDE, SIDE, 16, 0, bytes(SIDE * SIDE * 2))[:60], r"cannot be read"),
    "huge png": (huge_png, rf"IMAGE is 50000 x 50000 = 2500000000 pixels: at most {MAX_PIXELS} are allowed"),
    "huge webp": (lambda: huge_webp(b"VP8X"), rf"IMAGE is 16000 x 16000 = 256000000 pixels: at most {MAX_PIXELS}"),
    "huge lossless webp": (lambda: huge_webp(b"VP8L"), r"IMAGE is 16000 x 16000"),
    "huge lossy webp": (lambda: huge_webp(b"VP8 "), r"IMAGE is 16000 x 16000"),
    "huge file": (
        lambda: b"\x89PNG\r\n\x1a\n" + bytes(MAX_IMAGE_FILE_BYTES),
        rf"bytes: at most {MAX_IMAGE_FILE_BYTES} are",
    ),
    "tiny": (lambda: encode(Image.new("RGB", (15, 40))), r"IMAGE is 15 x 40 pixels: must be at least 16 x 16"),
    "narrow": (lambda: encode(Image.new("RGB", (16, 400))), r"16 x 400 pixels: one side may be at most 16 times"),
    "animated png": (lambda: animated("PNG"), r"IMAGE is animated, 3 frames: must be one still image"),
    "animated webp": (lambda: animated("WEBP"), r"IMAGE is animated, 3 frames: must be one still image"),
    "transparent png": (lambda: transparent("PNG"), r"IMAGE: all 768 pixels have alpha 0: must show something"),
    "transparent webp": (lambda: transparent("WEBP"), r"IMAGE: all 768 pixels have alpha 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_field_value_and_range(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(InvalidRequestError, match=message):
        read(make())


def test_refusals_name_the_field_they_are_about() -> None:
    with pytest.raises(ValueError, match=r"^CONTROL_IMAGE has 0 bytes"):
        read_image(b"", "CONTROL_IMAGE")


def test_nothing_is_decoded_before_the_size_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for make in (huge_png, lambda: animated("PNG"), lambda: huge_webp(b"VP8X")):
        with pytest.raises(InvalidRequestError, match=r"at most|animated"):
            read(make())
    with pytest.raises(AssertionError, match="decoded"):
        read(encode(Image.fromarray(pixels())))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata
def test_damaged_files_are_read_or_refused_and_nothing_else(kind: str) -> None:
    """300 files with a few bytes changed or their end cut, EXIF included."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a chair"
    whole = encode(Image.fromarray(pixels(4 if kind != "JPEG" else 3)), kind, exif=exif.tobytes())
    random = np.random.default_rng(7)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for position in random.integers(8, min(len(data), 400), size=random.integers(1, 6)):
            data[position] = random.integers(256)
        if random.random() < 0.2:
            data = data[: random.integers(8, len(data))]
        try:
            image = read(bytes(data))
        except InvalidRequestError as error:
            refused += 1
            assert str(error).startswith("IMAGE")
        else:
            assert image.rgb.ndim == 3 and image.rgb.dtype in (np.uint8, np.uint16)
            assert image.alpha is None or image.alpha.shape == image.rgb.shape[:2]
    assert refused > 30
