"""What GenerationRequest refuses: values of one field, and options that do not go together.

Everything raises InvalidRequestError, which names the field, its value and what is allowed.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from diffsplat_client.contract import CONTROL_TYPES, POSE_COLUMNS
from diffsplat_client.errors import InvalidRequestError

if TYPE_CHECKING:
    from diffsplat_client.request import GenerationRequest

MAX_PROMPT_CHARACTERS = 2000
MAX_FRAMES = 720
MAX_FRAME_PIXELS = 100_000_000  # of all frames together; 300 MB of bytes on the wire
MAX_IMAGE_BYTES = 32 * 2**20  # of a file; how many pixels it may have is for the server, which reads it

ONE_IMAGE = "image and control_image exclude each other: a ControlNet belongs to a text model, which takes no image"


def short(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value[:64] if isinstance(value, bytes | str) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_text(name: str, text: Any) -> None:
    """Refuse what is not text, too long, or not Unicode."""
    if not isinstance(text, str):
        raise InvalidRequestError(f"{name} = {short(text)}: must be text")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequestError(f"{name} has {len(text)} characters: at most {MAX_PROMPT_CHARACTERS} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone half of a surrogate pair, which JSON can carry
        raise InvalidRequestError(f"{name} = {short(text)}: must be valid Unicode text") from None


def check_number(name: str, value: Any, low: float, high: float, *, integer: bool) -> None:
    """Refuse what is not a number in low .. high."""
    kind = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InvalidRequestError(f"{name} = {short(value)}: must be {'an integer' if integer else 'a number'}")
    if not low <= value <= high:  # also catches NaN
        raise InvalidRequestError(f"{name} = {short(value)}: must be in {low} .. {high}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse what is not one of these words."""
    if not isinstance(value, str) or value not in choices:
        raise InvalidRequestError(f"{name} = {short(value)}: must be one of {', '.join(choices)}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidRequestError(f"{name} = {short(value)}: must be true or false")


def check_file(name: str, value: Any) -> None:
    """Refuse what is not the content of an image file by its type or size; it is opened by the server alone."""
    if not isinstance(value, bytes):
        raise InvalidRequestError(f"{name} = {short(value)}: must be the bytes of a PNG, JPEG or WebP file")
    if not value:
        raise InvalidRequestError(f"{name} has 0 bytes: must be a PNG, JPEG or WebP file")
    if len(value) > MAX_IMAGE_BYTES:
        raise InvalidRequestError(f"{name} has {len(value)} bytes: at most {MAX_IMAGE_BYTES} are allowed")


def check_poses(value: Any, frame_size: int, ranges: dict[str, tuple[float, float]]) -> None:
    """Refuse what is not a table [F, 4] within `ranges` (by column), or asks for too many pixels."""
    try:
        poses = np.asarray(value)
    except ValueError:  # rows of different lengths
        raise InvalidRequestError("frame_poses is not a table: must be [F, 4] numbers") from None
    if poses.ndim != 2 or poses.shape[1] != len(POSE_COLUMNS) or poses.dtype.kind not in "fiu":
        raise InvalidRequestError(
            f"frame_poses has shape {list(poses.shape)}, type {poses.dtype}: must be numbers [F, 4]"
        )
    if len(poses) > MAX_FRAMES:
        raise InvalidRequestError(f"frame_poses asks for {len(poses)} frames: at most {MAX_FRAMES} are allowed")
    pixels = len(poses) * frame_size**2
    if pixels > MAX_FRAME_PIXELS:
        raise InvalidRequestError(
            f"frame_poses x frame_size asks for {len(poses)} x {frame_size} x {frame_size} = {pixels} pixels: "
            f"at most {MAX_FRAME_PIXELS} are allowed"
        )
    for column, name in enumerate(POSE_COLUMNS):
        low, high = ranges[name]
        values = poses[:, column]
        fits = (low <= values) & (values <= high)  # false for NaN
        if name == "elevation_deg":
            fits |= np.isnan(values)  # the generated views' own
        bad = np.flatnonzero(~fits)
        if len(bad):
            raise InvalidRequestError(
                f"frame_poses[{bad[0]}] {name} = {values[bad[0]]}: must be in {low:g} .. {high:g}"
            )


def check_together(request: "GenerationRequest") -> None:
    """Refuse options that contradict each other, or that would be without effect for want of another.

    Each field must have been checked alone. What depends on the served bundle is checked by the server.
    """
    has_image, has_control = request.image is not None, request.control_image is not None
    if has_image and has_control:
        raise InvalidRequestError(ONE_IMAGE)
    if not (request.prompt.strip() or has_image or has_control):
        raise InvalidRequestError(
            f"prompt = {short(request.prompt)}: must contain at least one character that is not blank, "
            "or come with image or control_image"
        )
    if has_control and request.control_type is None:
        raise InvalidRequestError(
            f"control_image needs control_type: must say what it shows, one of {', '.join(CONTROL_TYPES)}"
        )
    if not has_control:
        of_control = {
            "control_type": request.control_type is not None,
            "control_scale": request.control_scale != 1.0,
            "guess_mode": request.guess_mode,
            "extract_canny": request.extract_canny,
        }
        for name in (name for name, given in of_control.items() if given):
            raise InvalidRequestError(
                f"{name} = {short(getattr(request, name))} needs control_image: must be left out without one"
            )
    if request.extract_canny and request.control_type != "canny":
        raise InvalidRequestError(
            f"extract_canny = True and control_type = {request.control_type!r}: must be 'canny', edges are extracted"
        )
    if not (has_image or has_control):
        for name in ("estimate_elevation", "remove_background"):
            if getattr(request, name):
                raise InvalidRequestError(
                    f"{name} = True needs image or control_image: must be left out without an image"
                )
    if request.estimate_elevation and request.elevation_deg is not None:
        raise InvalidRequestError(
            f"estimate_elevation = True and elevation_deg = {short(request.elevation_deg)} exclude each other: "
            "must be one of them"
        )
    if request.init_std > 0 and has_image:
        raise InvalidRequestError(
            f"init_std = {short(request.init_std)} and image exclude each other: must be 0, the blob start is for "
            "generation from text"
        )
