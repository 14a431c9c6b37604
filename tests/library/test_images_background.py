"""Cutting an object out and centring it: whose mask is used, where the object ends up, what is refused."""

import importlib.util
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from diffsplat_client.errors import InvalidRequestError

from diffsplat.images.background import (
    BackgroundRemover,
    GrabCut,
    Rembg,
    centre_object,
    cut_out,
    fit_longer_side,
    load_background_remover,
)
from diffsplat.images.decode_file import DecodedImage


class Never:
    """A remover that must not be asked."""

    name = "nobody"

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        raise AssertionError("asked for a mask")


class Fixed:
    """A remover that always finds the same box."""

    name = "a box"

    def __init__(self, top: int, left: int, bottom: int, right: int) -> None:
        self.box = np.s_[top:bottom, left:right]

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        alpha = np.zeros(rgb.shape[:2], np.uint8)
        alpha[self.box] = 255
        return alpha


def scene(size: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A green ellipse on noisy sand, and its mask."""
    y, x = np.mgrid[:size, :size] / size
    mask = ((x - 0.4) / 0.2) ** 2 + ((y - 0.6) / 0.3) ** 2 < 1
    noise = np.random.default_rng(seed).normal(0, 12, (size, size, 3))
    pixels = np.where(mask[..., None], (40, 130, 60), (205, 180, 140)) + noise
    return pixels.clip(0, 255).astype(np.uint8), mask


def cut(image: DecodedImage, remover: BackgroundRemover, border_ratio: float = 0.2) -> tuple[np.ndarray, str]:
    result = cut_out(image, remover, 256, border_ratio, "IMAGE")
    assert result.image.alpha is not None
    return result.image.alpha, result.method


def extent(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right; the ends exclusive."""
    ys, xs = np.nonzero(alpha)
    return ys.min(), xs.min(), ys.max() + 1, xs.max() + 1


def test_the_files_own_alpha_is_used() -> None:
    pixels, mask = scene()
    alpha, method = cut(DecodedImage(pixels, mask.astype(np.uint8) * 255), Never())
    assert method == "its own alpha"
    top, left, bottom, right = extent(alpha)
    assert bottom - top == int(256 * 0.8) and top == (256 - (bottom - top)) // 2
    assert (right - left) / (bottom - top) == pytest.approx(0.2 / 0.3, abs=0.02)
    assert abs((left + right) / 2 - 128) <= 1


def test_alpha_without_a_wholly_transparent_pixel_is_no_cut_out() -> None:
    """A veil over the whole photo says nothing about the object; the remover sees it on white."""
    pixels, _ = scene()
    seen = []

    class Watching(Fixed):
        def __call__(self, rgb: np.ndarray) -> np.ndarray:
            seen.append(rgb)
            return super().__call__(rgb)

    _, method = cut(DecodedImage(pixels, np.full(pixels.shape[:2], 128, np.uint8)), Watching(50, 60, 100, 120))
    assert method == "a box"
    assert np.abs(seen[0] - (fit_longer_side(pixels, 256) * (128 / 255) + 127)).max() <= 1


@pytest.mark.parametrize("seed", range(3))
def test_grabcut_finds_the_object(seed: int) -> None:
    pixels, mask = scene(seed=seed)
    found = GrabCut()(pixels) > 127
    assert (found & mask).sum() / (found | mask).sum() > 0.97
    assert np.array_equal(found, GrabCut()(pixels) > 127)  # whatever random numbers were drawn between


def test_grabcut_leaves_specks_out() -> None:
    pixels, mask = scene()
    pixels[20:26, 150:156] = (40, 130, 60)
    found = GrabCut()(pixels) > 127
    assert not found[15:35, 145:165].any() and found[mask].mean() > 0.97


def test_an_image_without_object_is_refused() -> None:
    white = np.full((64, 64, 3), 255, np.uint8)

    class Nothing(Fixed):
        name = "a blind one"

    with pytest.raises(InvalidRequestError, match=r"IMAGE: a blind one found no object: it must cover .* 0\.1%"):
        cut(DecodedImage(white, None), Nothing(0, 0, 0, 0))


@pytest.mark.parametrize("value", [0, 255, 128])
@pytest.mark.parametrize("shape", [(16, 16), (256, 16), (16, 256), (300, 200)])
def test_grabcut_survives_one_colour_and_narrow_images(value: int, shape: tuple[int, int]) -> None:
    """It calls something an object, or refuses, and soon: equal cuts once took minutes. No error of OpenCV."""
    try:
        alpha, method = cut(DecodedImage(np.full((*shape, 3), value, np.uint8), None), GrabCut())
    except InvalidRequestError as error:
        assert str(error).startswith("IMAGE: GrabCut found no object")
    else:
        assert method == "GrabCut" and alpha.shape == (256, 256) and alpha.any()


@pytest.mark.parametrize("border_ratio", [-0.1, 0.91, 1.0, float("nan"), float("inf")])
def test_border_ratio_out_of_range(border_ratio: float) -> None:
    pixels, _ = scene()
    with pytest.raises(InvalidRequestError, match=rf"border_ratio = {border_ratio}: must be in 0 \.\. 0\.9"):
        cut(DecodedImage(pixels, None), Fixed(50, 50, 150, 150), border_ratio)


@pytest.mark.parametrize("border_ratio", [0.0, 0.2, 0.5, 0.9])
def test_the_longer_side_leaves_the_border_free(border_ratio: float) -> None:
    pixels, _ = scene(256)
    alpha, _ = cut(DecodedImage(pixels, None), Fixed(10, 30, 60, 230), border_ratio)
    top, left, bottom, right = extent(alpha)
    assert int(256 * (1 - border_ratio)) - (right - left) in (0, 1)  # cut, not rounded, as in the reference
    assert abs((top + bottom) / 2 - 128) <= 1 and abs((left + right) / 2 - 128) <= 1


@pytest.mark.parametrize("box", [(7, 9, 8, 10), (7, 9, 8, 60), (7, 9, 60, 10)], ids=["pixel", "row", "column"])
def test_boxes_without_width_or_height_are_centred_too(box: tuple[int, int, int, int]) -> None:
    """The reference divides by zero."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[box[0] : box[2], box[1] : box[3]] = 255
    top, left, bottom, right = extent(centre_object(rgba, 64, 0.5)[..., 3])
    assert max(bottom - top, right - left) == 32
    assert abs((top + bottom) / 2 - 32) <= 1 and abs((left + right) / 2 - 32) <= 1


def test_the_choice_of_remover_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert isinstance(load_background_remover(), GrabCut)
    assert "background removal by GrabCut" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("rembg") is None, reason="the extra `rembg` is not installed")
@pytest.mark.filterwarnings("ignore")  # of what rembg imports
def test_rembg_with_a_network_of_one_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the published weights: less red is more object."""
    take_red = onnx.helper.make_node("Conv", ["image", "kernel"], ["mask"])
    kernel = onnx.numpy_helper.from_array(np.array([-1, 0, 0], np.float32).reshape(1, 3, 1, 1), "kernel")
    tensors = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, 320, 320])
        for name, channels in (("image", 3), ("mask", 1))
    ]
    graph = onnx.helper.make_graph([take_red], "u2net", tensors[:1], tensors[1:], [kernel])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "u2net.onnx")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    monkeypatch.setenv("MODEL_CHECKSUM_DISABLED", "1")
    remover = load_background_remover()
    assert isinstance(remover, Rembg) and remover.name == "rembg u2net"
    pixels, mask = scene()
    alpha = remover(pixels)
    assert alpha.shape == mask.shape and alpha.dtype == np.uint8
    assert alpha[mask].mean() > 150 and alpha[~mask].mean() < 60
