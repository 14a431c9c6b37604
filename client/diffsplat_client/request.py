"""GenerationRequest: every option of one generation, its range, and its form on the wire."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffsplat_client.contract import CONTROL_TYPES, POSE_COLUMNS, REQUEST_TENSORS, SCHEDULERS
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.option_table import option
from diffsplat_client.option_tensors import decode_options, encode_options
from diffsplat_client.output_options import (
    DISTANCE_LIMITS,
    ELEVATION_LIMITS,
    MAX_DEADLINE_S,
    OutputOptions,
    option_fields,
)
from diffsplat_client.request_checks import ONE_IMAGE, check_text, short

MAX_NUM_SEEDS = 16
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class GenerationRequest(OutputOptions):
    """One generation, from a prompt, an image or both.

    `None` leaves the choice to the served bundle; limits are inclusive. `image` and `control_image` are the bytes of a
    PNG, JPEG or WebP file.

    The four generated views stand at azimuth 0, 90, 180, 270. In `frame_poses` an elevation of NaN
    (`poses.OWN_ELEVATION`) stands for theirs, for requests that leave it to the bundle or have it estimated.
    """

    prompt: str = ""  # may be blank with an image alone
    negative_prompt: str = option("", "what the object should not be")
    image: bytes | None = option(None, "image of the object from the front, for bundles made for images", file=True)
    control_image: bytes | None = option(
        None, "depth, normal or canny map of the front view, for bundles with a ControlNet", file=True
    )
    remove_background: bool = option(False, "cut the object out of its image and centre it")
    border_ratio: float = option(
        0.2, "share of the side that remove_background leaves free, both borders together", limits=(0.0, 0.9)
    )
    elevation_deg: float | None = option(
        None, "elevation of the generated views above the horizon, degrees", limits=ELEVATION_LIMITS
    )
    estimate_elevation: bool = option(False, "estimate elevation_deg from the image")
    distance: float | None = option(None, "distance of the cameras from the object", limits=DISTANCE_LIMITS)
    seed: int | None = option(
        None,
        "seed of all noise; without one the server draws one and reports it",
        limits=(0, MAX_SEED),
        integer=True,
    )
    num_seeds: int = option(
        1, "objects to make of one prompt, with seed, seed + 1, ...", limits=(1, MAX_NUM_SEEDS), integer=True
    )
    steps: int | None = option(None, "denoising steps", limits=(1, 200), integer=True)
    scheduler: str | None = option(None, "sampler", choices=SCHEDULERS)
    eta: float | None = option(None, "noise added by each step of ddim", limits=(0.0, 1.0))
    guidance_scale: float | None = option(None, "strength of the prompt", limits=(0.0, 50.0))
    triangle_guidance: bool = option(
        False, "guidance rises from min_guidance_scale at the front view to guidance_scale at the back"
    )
    min_guidance_scale: float = option(1.0, "guidance of the front view with triangle_guidance", limits=(0.0, 50.0))
    control_type: str | None = option(None, "what control_image shows", choices=CONTROL_TYPES)
    control_scale: float = option(1.0, "strength of control_image", limits=(0.0, 2.0))
    guess_mode: bool = option(False, "let control_image say what the object is; the prompt may be empty")
    extract_canny: bool = option(False, "control_image is a photo: its edges become the canny map")
    init_std: float = option(
        0.0, "start from a dark blob as wide as this share of two views, not from noise; 0 is off", limits=(0.0, 2.0)
    )
    init_noise_strength: float = option(
        0.98, "with init_std: share of the steps that are taken, hence of the noise; 1 is off", limits=(0.0, 1.0)
    )
    init_background: float = option(
        0.0, "with init_std: grey that is subtracted from the white around the blob", limits=(0.0, 1.0)
    )
    priority: int = option(0, "requests of a higher priority are denoised first", limits=(-2, 2), integer=True)
    preview_every: int = option(
        0,
        "show the object every so many steps, as far as the server has time; 0 is off",
        limits=(0, 200),
        integer=True,
    )
    start_deadline_s: float | None = option(
        None, "seconds that the request may wait for its first denoising step", limits=(0.0, MAX_DEADLINE_S)
    )

    def validate(self) -> "GenerationRequest":
        """Return self, or raise InvalidRequestError naming the first bad field, its value and what is allowed."""
        self.check_fields()
        check_together(self)
        return self

    def check_fields(self) -> None:
        """Check each field on its own, not their combinations; InvalidRequestError names the first bad one."""
        for name in ("prompt", "negative_prompt"):
            check_text(name, getattr(self, name))
        super().check_fields()

    def with_defaults(self, **defaults: Any) -> "GenerationRequest":
        """Fill the fields that are still None, and the open elevations of poses once the elevation is known."""
        filled = dataclasses.replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})
        if filled.elevation_deg is None or filled.frame_poses is None:
            return filled
        poses = np.array(filled.frame_poses, np.float32).reshape(-1, len(POSE_COLUMNS))
        poses[np.isnan(poses[:, 0]), 0] = filled.elevation_deg
        return dataclasses.replace(filled, frame_poses=poses)

    @property
    def has_blob_start(self) -> bool:
        """Whether the blob has any effect: with a strength of 1 the start is all noise, as without a blob."""
        return self.init_std > 0 and self.init_noise_strength < 1

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The request as the small tensors of `contract.REQUEST_TENSORS`; fields that are None are left out."""
        return encode_options(self, REQUEST_TENSORS)

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "GenerationRequest":
        """Inverse of `to_tensors`; `validate` holds the checks of values.

        Raises:
            InvalidRequestError: nothing to generate from, a wrong shape, or text that is too long or not UTF-8.
        """
        values = decode_options(tensors, REQUEST_TENSORS, FILES)
        if not {"prompt", *FILES} & set(values):
            raise InvalidRequestError("prompt is missing")
        return cls(**values)


OPTIONS = option_fields(GenerationRequest)
# inclusive ranges and choices of the options above
RANGES: dict[str, tuple[float, float]] = {
    name: field.metadata["limits"] for name, field in OPTIONS.items() if field.metadata.get("limits")
}
CHOICES: dict[str, tuple[str, ...]] = {
    name: field.metadata["choices"] for name, field in OPTIONS.items() if field.metadata.get("choices")
}
FILES = tuple(name for name, field in OPTIONS.items() if field.metadata.get("file"))


def check_together(request: GenerationRequest) -> None:
    """Refuse options that contradict each other, or that have no effect without another one.

    Each field must have been checked before. The server checks what depends on its bundle.
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
    if request.seed is not None and request.seed > MAX_SEED - request.num_seeds + 1:
        raise InvalidRequestError(
            f"seed = {request.seed} and num_seeds = {request.num_seeds}: the last seed must be at most {MAX_SEED}"
        )
    if request.init_std > 0 and has_image:
        raise InvalidRequestError(
            f"init_std = {short(request.init_std)} and image exclude each other: must be 0, the blob start is for "
            "generation from text"
        )


def as_request(prompt: str | GenerationRequest, options: dict[str, Any]) -> GenerationRequest:
    """A request from what `Client.generate` takes: a prompt, or a request whose fields the options replace."""
    if isinstance(prompt, GenerationRequest):
        return dataclasses.replace(prompt, **options)
    return GenerationRequest(prompt, **options)
