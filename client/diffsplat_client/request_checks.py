"""Checks of single fields of requests.

All of them raise InvalidRequestError, which names the field, its value and what is allowed.
"""

from typing import Any

import numpy as np

from diffsplat_client.contract import POSE_COLUMNS
from diffsplat_client.errors import InvalidRequestError

MAX_PROMPT_CHARACTERS = 2000
MAX_FRAMES = 720
MAX_FRAME_PIXELS = 100_000_000  # of all frames together; 300 MB of bytes on the wire
MAX_IMAGE_BYTES = 32 * 2**20  # of a file; the server, which decodes it, limits the pixels

ONE_IMAGE = "image and control_image exclude each other: a ControlNet belongs to a text model, which takes no image"


def short(value: Any) -> str:
    """A value as messages show it, cut to 60 characters."""
    try:
        text = repr(value[:64] if isinstance(value, bytes | str) else value)
    except RecursionError:  # JSON can nest about as deeply as Python calls can
        text = f"a nested {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_text(name: str, text: Any) -> None:
    """Refuse anything but valid Unicode text of limited length."""
    if not isinstance(text, str):
        raise InvalidRequestError(f"{name} = {short(text)}: must be text")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequestError(f"{name} has {len(text)} characters: at most {MAX_PROMPT_CHARACTERS} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone half of a surrogate pair, which JSON can carry
        raise InvalidRequestError(f"{name} = {short(text)}: must be valid Unicode text") from None


def check_number(name: str, value: Any, low: float, high: float, *, integer: bool) -> None:
    """Refuse anything but a number in low .. high."""
    kind = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InvalidRequestError(f"{name} = {short(value)}: must be {'an integer' if integer else 'a number'}")
    if not low <= value <= high:  # also catches NaN
        raise InvalidRequestError(f"{name} = {short(value)}: must be in {low} .. {high}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse anything but one of these words."""
    if not isinstance(value, str) or value not in choices:
        allowed = ", ".join(choice or "''" for choice in choices)
        raise InvalidRequestError(f"{name} = {short(value)}: must be one of {allowed}")


def check_list(name: str, values: Any, choices: tuple[str, ...]) -> None:
    """Refuse anything but a list of different words of these, at least one."""
    if not isinstance(values, list | tuple) or not values:
        raise InvalidRequestError(f"{name} = {short(values)}: must be a list of {', '.join(choices)}")
    for value in values:
        check_choice(name, value, choices)
        if values.count(value) > 1:
            raise InvalidRequestError(f"{name} names {value!r} {values.count(value)} times: must name it once")


def check_flag(name: str, value: Any) -> None:
    """Refuse anything but true or false."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidRequestError(f"{name} = {short(value)}: must be true or false")


def check_file(name: str, value: Any) -> None:
    """Refuse anything but bytes of limited length; only the server looks into the file."""
    if not isinstance(value, bytes):
        raise InvalidRequestError(f"{name} = {short(value)}: must be the bytes of a PNG, JPEG or WebP file")
    if not value:
        raise InvalidRequestError(f"{name} has 0 bytes: must be a PNG, JPEG or WebP file")
    if len(value) > MAX_IMAGE_BYTES:
        raise InvalidRequestError(f"{name} has {len(value)} bytes: at most {MAX_IMAGE_BYTES} are allowed")


def check_poses(value: Any, frame_size: int, ranges: dict[str, tuple[float, float]]) -> None:
    """Refuse anything but a table [F, 4] within `ranges` (by column) that asks for a limited number of pixels."""
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
            fits |= np.isnan(values)  # means the elevation of the generated views
        bad = np.flatnonzero(~fits)
        if len(bad):
            raise InvalidRequestError(
                f"frame_poses[{bad[0]}] {name} = {values[bad[0]]}: must be in {low:g} .. {high:g}"
            )
