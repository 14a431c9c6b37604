"""From a file's bytes to what the networks take: blending, resizing, edges, ElevEst's input."""

import io
import math

import cv2
import numpy as np
import pytest
import torch
from diffsplat_client.errors import InvalidRequestError
from PIL import Image

from diffsplat.images.background import GrabCut
from diffsplat.images.decode_file import DecodedImage
from diffsplat.images.prepare import (
    canny_map,
    elevation_input,
    on_white,
    prepare_control_map,
    prepare_image,
    resize_antialiased,
)


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def photo(size: int = 300) -> np.ndarray:
    """A red disc with a blue square on it, before a grey gradient: [S, S, 3] uint8."""
    y, x = np.mgrid[:size, :size] / size
    pixels = np.stack([150 + 60 * y] * 3, axis=-1)
    pixels[(x - 0.5) ** 2 + (y - 0.45) ** 2 < 0.3**2] = (200, 30, 30)
    pixels[(abs(x - 0.5) < 0.1) & (abs(y - 0.45) < 0.1)] = (20, 40, 190)
    return pixels.astype(np.uint8)


def disc_mask(size: int = 300) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    return (x - 0.5) ** 2 + (y - 0.45) ** 2 < 0.3**2


def cut_photo() -> np.ndarray:
    return np.concatenate([photo(), np.where(disc_mask(), 255, 0).astype(np.uint8)[..., None]], axis=2)


def test_an_image_of_the_networks_size_is_passed_through() -> None:
    pixels = photo(256)
    prepared = prepare_image(encode(pixels))
    assert torch.equal(prepared.rgb, torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    assert torch.equal(prepared.alpha, torch.ones(1, 256, 256))
    assert prepared.notes == ()


def test_transparent_pixels_are_white_whatever_their_colour() -> None:
    pixels = cut_photo()
    pixels[~disc_mask(), :3] = (0, 255, 0)
    prepared = prepare_image(encode(pixels))
    assert torch.equal(prepared.rgb[:, 0, 0], torch.ones(3))
    # only the soft edge is neither object nor white: no green anywhere
    assert (prepared.rgb[1] <= torch.maximum(prepared.rgb[0], prepared.rgb[2]) + 1e-6).all()
    assert prepared.alpha.shape == (1, 256, 256)
    assert prepared.alpha.mean().item() == pytest.approx(disc_mask().mean(), abs=2e-3)


def test_blending_comes_before_resizing() -> None:
    """Half transparent pixels count half."""
    rgba = np.zeros((32, 32, 4), np.float32)
    rgba[..., 0], rgba[..., 3] = 1.0, 0.25
    prepared = on_white(DecodedImage(rgba[..., :3], rgba[..., 3]), 16, "IMAGE")
    assert torch.allclose(prepared.rgb[0], torch.ones(16, 16)) and torch.allclose(prepared.rgb[1], torch.tensor(0.75))
    assert torch.allclose(prepared.alpha, torch.tensor(0.25))


def test_an_image_that_is_no_square_is_stretched_and_says_so() -> None:
    prepared = prepare_image(encode(photo()[:200]))
    assert prepared.rgb.shape == (3, 256, 256)
    assert prepared.notes == ("IMAGE: 300 x 200 pixels, stretched to a square",)


def test_preparation_is_deterministic_and_in_range() -> None:
    data = encode(photo(), "JPEG")
    first, second = (prepare_image(data, remover=GrabCut()) for _ in range(2))
    assert torch.equal(first.rgb, second.rgb) and torch.equal(first.alpha, second.alpha)
    assert first.rgb.dtype == torch.float32 and 0 <= first.rgb.min() and first.rgb.max() <= 1


def test_jpeg_and_png_of_one_photo_are_nearly_the_same() -> None:
    """The reference hands JPEG values on as 0 .. 255."""
    ours, lossless = (prepare_image(encode(photo(), kind)).rgb for kind in ("JPEG", "PNG"))
    assert (ours - lossless).abs().mean() < 0.02


def test_16_bit_depth_keeps_finer_steps_than_8_bits() -> None:
    depth = np.linspace(30_000, 30_512, 256, dtype=np.uint16)[None].repeat(256, axis=0)
    stream = io.BytesIO()
    Image.fromarray(depth).save(stream, "PNG")
    hint = prepare_control_map(stream.getvalue()).hint
    assert torch.allclose(hint[0, 0], torch.from_numpy(depth[0].astype(np.float32)) / 65535, atol=1e-6)
    assert len(hint[0, 0].unique()) == 256


# --- control maps ---


def test_a_control_map_is_taken_as_it_is() -> None:
    """In 0 .. 1, not -1 .. 1, antialiased: every second of alternating lines gives grey."""
    lines = np.zeros((512, 512, 3), np.uint8)
    lines[::2] = 255
    control = prepare_control_map(encode(lines))
    assert control.hint.shape == (3, 256, 256) and control.notes == ()
    assert torch.allclose(control.hint[:, 4:-4], torch.tensor(0.5), atol=1e-3)


def test_a_control_map_with_alpha_has_a_white_background() -> None:
    assert torch.equal(prepare_control_map(encode(cut_photo())).hint[:, 0, 0], torch.ones(3))


def test_canny_is_opencvs_black_on_white() -> None:
    rgb = torch.from_numpy(photo(512)).permute(2, 0, 1) / 255
    edges = canny_map(rgb)
    grey = (cv2.cvtColor(photo(512).astype(np.float32) / 255, cv2.COLOR_RGB2GRAY) * 255).astype(np.uint8)
    expected = 255 - cv2.Canny(grey, 100, 200)
    assert torch.equal(edges, torch.from_numpy(expected / 255).float().expand(3, -1, -1))
    assert 0 < (edges == 0).float().mean() < 0.05


def test_extracted_edges_lie_on_the_objects_outline() -> None:
    control = prepare_control_map(encode(cut_photo()), extract_canny=True)
    assert control.hint.shape == (3, 256, 256)
    assert torch.equal(control.hint[0], control.hint[1]) and torch.equal(control.hint[0], control.hint[2])
    assert control.notes == ("CONTROL_IMAGE: its edges are the control map",)
    y, x = np.nonzero((control.hint[0] < 0.8).numpy())
    assert len(y) > 300
    radius = np.hypot((x + 0.5) / 256 - 0.5, (y + 0.5) / 256 - 0.45)
    assert radius.max() == pytest.approx(0.3, abs=0.01)  # nothing outside of the object
    angles = np.degrees(np.arctan2(y / 256 - 0.45, x / 256 - 0.5))[radius > 0.29]
    assert len(np.unique(angles // 10)) == 36  # all around


def test_edges_are_found_at_512_pixels() -> None:
    """The size of the renders that the training maps were made from, whatever the file's and the hint's."""
    data = encode(photo(900))
    at_512 = 255 - cv2.Canny((grey_of(prepare_image(data, 512).rgb) * 255).astype(np.uint8), 100, 200)
    expected = resize_antialiased(torch.from_numpy(at_512 / 255).float()[None, None], 128)
    hint = prepare_control_map(data, 128, extract_canny=True).hint
    torch.testing.assert_close(hint, expected[0].expand(3, -1, -1))


def grey_of(rgb: torch.Tensor) -> np.ndarray:
    return cv2.cvtColor(np.ascontiguousarray(rgb.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY)


def test_edges_of_a_photo_without_its_background() -> None:
    control = prepare_control_map(encode(photo()), extract_canny=True, remover=GrabCut())
    assert control.notes[0] == "CONTROL_IMAGE: object cut out by GrabCut, and centred"
    for places in np.nonzero((control.hint[0] < 0.9).numpy()):
        low, high = places.min(), places.max()
        assert abs((low + high) / 2 - 127.5) <= 2 and high - low == pytest.approx(0.8 * 256, abs=4)


# --- ElevEst's input ---


def test_elevation_input_is_normalised_by_imagenets_statistics() -> None:
    white = elevation_input(torch.ones(2, 3, 256, 256))
    assert white.shape == (2, 3, 224, 224)
    expected = [(1 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert torch.allclose(white[1, :, 100, 100], torch.tensor(expected))


def test_antialiased_shrinking_keeps_the_mean() -> None:
    images = torch.rand(1, 3, 1000, 700, generator=torch.Generator().manual_seed(0))
    assert math.isclose(resize_antialiased(images, 50).mean(), images.mean(), abs_tol=1e-3)


# --- refusals come with the field they are about ---


@pytest.mark.parametrize(
    ("prepare", "field"), [(prepare_image, "IMAGE"), (prepare_control_map, "CONTROL_IMAGE")], ids=["image", "control"]
)
def test_refusals_name_the_field(prepare, field: str) -> None:
    empty = np.zeros((40, 40, 4), np.uint8)
    for data, message in (
        (b"", "has 0 bytes"),
        (b"not an image", "begins with"),
        (encode(empty), "all 1600 pixels have alpha 0"),
        (encode(photo())[:-100], "cannot be read"),
    ):
        with pytest.raises(InvalidRequestError, match=rf"^{field}\b.*{message}"):
            prepare(data)
