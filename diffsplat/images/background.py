"""Cut an object out of its photo and centre it, as in the images that the networks were trained on.

A file's own alpha is used where it has one, else the remover that was chosen at start (`load_background_remover`);
every result names the method. Axes: H W pixels of the file, S pixels along the side of the result.
"""

import importlib.util
import logging
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from diffsplat_client.errors import InvalidRequestError

from diffsplat.images.decode_file import DecodedImage, to_bytes

DEFAULT_BORDER_RATIO = 0.2
MAX_BORDER_RATIO = 0.9
MIN_SHARE = 0.001  # of the image that an object must cover
_GRABCUT_ROUNDS = 5
_GRABCUT_SIZE = 192  # pixels along the longer side: time grows faster than the area
_GRABCUT_DITHER = 2  # levels
_GRABCUT_MARGIN = 0.03  # of each side: certain to be background
_SPECK = 0.1  # regions smaller than this share of the largest one are dropped

_log = logging.getLogger(__name__)


class BackgroundRemover(Protocol):
    """Separates an object from its background."""

    @property
    def name(self) -> str:
        """Its name in notes."""

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 -> alpha [H, W] uint8."""


class GrabCut:
    """OpenCV's GrabCut (Rother et al. 2004), which takes the colours of the image's margin as background.

    Needs no weights and gives the same result every time; fails on objects that touch the margin.
    """

    name = "GrabCut"

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 -> alpha [H, W] uint8, found at 192 pixels and enlarged smoothly."""
        small = fit_longer_side(rgb, _GRABCUT_SIZE)
        height, width = small.shape[:2]
        # without it a uniform image, all of whose cuts cost the same, takes minutes
        dither = np.random.default_rng(0).integers(-_GRABCUT_DITHER, _GRABCUT_DITHER + 1, small.shape)
        x, y = max(1, round(_GRABCUT_MARGIN * width)), max(1, round(_GRABCUT_MARGIN * height))
        labels = np.zeros((height, width), np.uint8)
        cv2.setRNGSeed(0)  # GrabCut initialises its clusters from this thread's generator
        cv2.grabCut(
            np.ascontiguousarray((small + dither).clip(0, 255).astype(np.uint8)[..., ::-1]),
            labels,
            (x, y, width - 2 * x, height - 2 * y),
            np.zeros((1, 65)),
            np.zeros((1, 65)),
            _GRABCUT_ROUNDS,
            cv2.GC_INIT_WITH_RECT,
        )
        found = _without_specks((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))
        alpha = np.where(found, 255, 0).astype(np.uint8)
        return cv2.resize(alpha, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_LINEAR)


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """Drop small regions: [H, W] bool -> [H, W] bool."""
    count, regions, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count == 1:  # background only
        return mask
    areas = stats[:, cv2.CC_STAT_AREA]
    keep = areas >= _SPECK * areas[1:].max()
    keep[0] = False
    return keep[regions]


class Rembg:
    """A network of the `rembg` package, which downloads its weights on construction."""

    def __init__(self, model: str) -> None:
        import rembg  # an optional dependency

        self._remove = rembg.remove
        self._session = rembg.new_session(model)
        self.name = f"rembg {model}"

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 -> alpha [H, W] uint8.

        Uses the mask only: rembg's own cut-out premultiplies the colours, and blending over white would do so again.
        """
        return np.asarray(self._remove(np.ascontiguousarray(rgb), session=self._session, only_mask=True))


def load_background_remover(model: str = "u2net") -> BackgroundRemover:
    """Load `rembg` if it is installed, else GrabCut. Logs the choice.

    Errors of `rembg` when it cannot get its weights propagate: a server should not start then.
    """
    remover: BackgroundRemover = Rembg(model) if importlib.util.find_spec("rembg") else GrabCut()
    _log.info("background removal by %s", remover.name)
    return remover


class CutOut(NamedTuple):
    """An object in the middle of a transparent square."""

    image: DecodedImage  # [S, S], uint8, with alpha
    method: str  # "its own alpha", or the remover's name


def cut_out(image: DecodedImage, remover: BackgroundRemover, size: int, border_ratio: float, field: str) -> CutOut:
    """Remove the background and centre what is left.

    An image with a fully transparent pixel counts as cut out already, and its own alpha is used.

    Args:
        image: of any size.
        remover: used for all other images.
        size: side of the result, pixels.
        border_ratio: share of the side that stays empty, both borders together.
        field: what messages call the image.

    Raises:
        InvalidRequestError: border_ratio out of range, or no object was found.
    """
    if not 0 <= border_ratio <= MAX_BORDER_RATIO:  # also refuses NaN
        raise InvalidRequestError(f"border_ratio = {border_ratio}: must be in 0 .. {MAX_BORDER_RATIO}")
    rgba = fit_longer_side(to_bytes(image), size)
    if image.alpha is not None and image.alpha.min() == 0:
        method = "its own alpha"
    else:
        method = remover.name
        alpha = rgba[..., 3:].astype(np.float32) / 255
        on_white = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        rgba = np.concatenate([on_white, remover(on_white)[..., None]], axis=2)
    if (rgba[..., 3] > 0).mean() < MIN_SHARE:
        raise InvalidRequestError(
            f"{field}: {method} found no object: it must cover at least {MIN_SHARE:.1%} of the image"
        )
    centred = centre_object(rgba, size, border_ratio)
    return CutOut(DecodedImage(centred[..., :3], centred[..., 3], image.notes), method)


def fit_longer_side(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize by area, [H, W, C] uint8, so that the longer side is `size`.

    Colours of transparent pixels bleed into their neighbours, as in the reference.
    """
    scale = size / max(pixels.shape[:2])
    return _resize(pixels, int(pixels.shape[0] * scale), int(pixels.shape[1] * scale))


def centre_object(rgba: np.ndarray, size: int, border_ratio: float) -> np.ndarray:
    """Scale the box of pixels with alpha above 0 and paste it into the middle of a transparent square.

    The box ends one pixel before its last row and column, as in the reference: its scale depends on that.

    Args:
        rgba: [H, W, 4] uint8 with at least one such pixel; the order of the colours does not matter.
        size: side of the result, pixels.
        border_ratio: the box's longer side becomes `int(size * (1 - border_ratio))` pixels.

    Returns:
        [S, S, 4] uint8.
    """
    ys, xs = np.nonzero(rgba[..., 3])
    top, left = ys.min(), xs.min()
    height, width = max(1, ys.max() - top), max(1, xs.max() - left)  # a single pixel has a box too
    scale = int(size * (1 - border_ratio)) / max(height, width)
    box = _resize(rgba[top : top + height, left : left + width], int(height * scale), int(width * scale))
    result = np.zeros((size, size, 4), np.uint8)
    y, x = (size - box.shape[0]) // 2, (size - box.shape[1]) // 2
    result[y : y + box.shape[0], x : x + box.shape[1]] = box
    return result


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(pixels, (max(1, width), max(1, height)), interpolation=cv2.INTER_AREA)
