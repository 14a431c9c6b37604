"""A user's file -> inputs of the networks: condition image, control map, ElevEst's input.

    bytes -> decode_file.read_image -> (background.cut_out) -> white background -> S x S

Deterministic, on the CPU. Axes: H W pixels of the file, S pixels along the side of the result (256).
"""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffsplat.images.background import DEFAULT_BORDER_RATIO, BackgroundRemover, cut_out
from diffsplat.images.decode_file import DecodedImage, read_image, unit_range

IMAGE, CONTROL_IMAGE = "IMAGE", "CONTROL_IMAGE"  # fields of a request
ELEVATION_INPUT_SIZE = 224
CANNY_SIZE = 512  # edges of the training maps were found in renders of this size
CANNY_THRESHOLDS = (100, 200)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class PreparedImage(NamedTuple):
    """An image, ready for the networks."""

    rgb: Tensor  # [3, S, S] float32 in [0, 1] on white
    alpha: Tensor  # [1, S, S] float32 in [0, 1]; all ones for an opaque image
    notes: tuple[str, ...]  # remarks for the user: background removed, image stretched


class ControlMap(NamedTuple):
    """The hint of view 0; the other views get a white one (`controlnet.HintEncoder`)."""

    hint: Tensor  # [3, S, S] float32 in [0, 1], not [-1, 1]
    notes: tuple[str, ...]
    prepared: PreparedImage  # the image from which the map was made, at working size


def prepare_image(
    data: bytes | DecodedImage,
    size: int = 256,
    remover: BackgroundRemover | None = None,
    border_ratio: float = DEFAULT_BORDER_RATIO,
    field: str = IMAGE,
) -> PreparedImage:
    """Prepare a condition image.

    Args:
        data: a PNG, JPEG or WebP file, its bytes or decoded by `read_image`.
        size: side of the result, pixels.
        remover: cuts out and centres the object; None leaves the image as it is.
        border_ratio: as in `cut_out`; used with a remover only.
        field: name of the image in messages.

    Raises:
        InvalidRequestError: as `read_image` and `cut_out`.
    """
    image = data if isinstance(data, DecodedImage) else read_image(data, field)
    if remover is None:
        return on_white(image, size, field)
    cut = cut_out(image, remover, size, border_ratio, field)
    prepared = on_white(cut.image, size, field)
    return prepared._replace(notes=(*prepared.notes, f"{field}: object cut out by {cut.method}, and centred"))


def prepare_control_map(
    data: bytes | DecodedImage,
    size: int = 256,
    extract_canny: bool = False,
    remover: BackgroundRemover | None = None,
    border_ratio: float = DEFAULT_BORDER_RATIO,
    field: str = CONTROL_IMAGE,
) -> ControlMap:
    """Prepare a normal, depth or canny map of view 0.

    Args:
        data: as in `prepare_image`: a map with white background, or a photo.
        size: side of the result, pixels.
        extract_canny: the file is a photo, whose edges are the map.
        remover: as in `prepare_image`; meant for photos, maps are better left as they are.
        border_ratio: as in `prepare_image`.
        field: name of the image in messages.

    Raises:
        InvalidRequestError: as `prepare_image`.
    """
    prepared = prepare_image(data, CANNY_SIZE if extract_canny else size, remover, border_ratio, field)
    if not extract_canny:
        return ControlMap(prepared.rgb, prepared.notes, prepared)
    notes = (*prepared.notes, f"{field}: its edges are the control map")
    return ControlMap(canny_hint(prepared.rgb, size), notes, prepared)


def on_white(image: DecodedImage, size: int, field: str) -> PreparedImage:
    """Blend over white and resize to a square; non-square images are stretched, as in the reference."""
    height, width = image.rgb.shape[:2]
    alpha = None if image.alpha is None else unit_range(image.alpha)  # [H, W]

    def resized(values: np.ndarray) -> Tensor:
        return resize_antialiased(torch.from_numpy(np.ascontiguousarray(values))[None, None], size)[0]  # [1, S, S]

    channels = []
    for i in range(3):  # one by one: a large photo in float32 dominates the peak memory of this stage
        values = unit_range(image.rgb[..., i])
        channels.append(resized(values if alpha is None else values * alpha + (1 - alpha)))
    notes = image.notes
    if width != height:
        notes = (*notes, f"{field}: {width} x {height} pixels, stretched to a square")
    return PreparedImage(
        torch.cat(channels).clamp(0, 1), torch.ones(1, size, size) if alpha is None else resized(alpha), notes
    )


def resize_antialiased(images: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, C, S, S], bilinear with antialiasing."""
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


def canny_map(rgb: Tensor) -> Tensor:
    """Edges of an image on white, [3, H, W] in [0, 1] -> [3, H, W], black on white.

    Grey values are truncated, not rounded, to 8 bits, as for the training maps.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(rgb.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2GRAY)
    edges = cv2.Canny((grey * 255).astype(np.uint8), *CANNY_THRESHOLDS)  # [H, W] of 0 and 255
    return 1 - torch.from_numpy(edges).float().div(255).expand(3, -1, -1)


def canny_hint(rgb: Tensor, size: int) -> Tensor:
    """Control map of an image's edges, for a request and in training: [3, H, W] in [0, 1] on white -> [3, S, S].

    Edges are found at `CANNY_SIZE`, whatever the size of the image.
    """
    return resize_antialiased(canny_map(resize_antialiased(rgb[None], CANNY_SIZE)[0].clamp(0, 1))[None], size)[0]


def elevation_input(rgb: Tensor, size: int = ELEVATION_INPUT_SIZE) -> Tensor:
    """ElevEst's input: images [B, 3, H, W] in [0, 1] -> [B, 3, size, size], normalised by ImageNet's statistics."""
    mean, std = torch.tensor(_IMAGENET_MEAN)[:, None, None], torch.tensor(_IMAGENET_STD)[:, None, None]
    return (resize_antialiased(rgb, size) - mean) / std
