"""GenerationRequest: every option of one generation, its range, and its two forms on the wire."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffsplat_client.contract import CONTROL_TYPES, FORMATS, POSE_COLUMNS, REQUEST_TENSORS, SCHEDULERS, TensorSpec
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request_checks import (
    check_choice,
    check_file,
    check_flag,
    check_number,
    check_poses,
    check_text,
    check_together,
)


def _option(
    default: Any,
    help: str,
    *,
    limits: tuple[float, float] | None = None,
    integer: bool = False,
    choices: tuple[str, ...] | None = None,
    file: bool = False,
) -> Any:
    """One line of the field table: what the checks below and the command line know about a field."""
    metadata = {"help": help, "limits": limits, "integer": integer, "choices": choices, "file": file}
    return dataclasses.field(default=default, repr=not file, metadata=metadata)


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One generation, from a prompt, an image or both.

    `None` leaves the choice to the served bundle; limits are inclusive. `image` and `control_image` are the bytes of a
    PNG, JPEG or WebP file.

    `frame_poses` is float32 [F, 4]: elevation above the horizon in degrees, azimuth in degrees, distance, factor on
    the splats' size. The four generated views stand at azimuth 0, 90, 180, 270. An elevation of NaN
    (`poses.OWN_ELEVATION`) stands for theirs, for requests that leave it to the bundle or have it estimated.
    """

    prompt: str = ""  # may be blank with an image alone
    negative_prompt: str = _option("", "what the object should not be")
    image: bytes | None = _option(None, "image of the object from the front, for bundles made for images", file=True)
    control_image: bytes | None = _option(
        None, "depth, normal or canny map of the front view, for bundles with a ControlNet", file=True
    )
    remove_background: bool = _option(False, "cut the object out of its image and centre it")
    border_ratio: float = _option(
        0.2, "share of the side that remove_background leaves free, both borders together", limits=(0.0, 0.9)
    )
    elevation_deg: float | None = _option(
        None, "elevation of the generated views above the horizon, degrees", limits=(-89.0, 89.0)
    )
    estimate_elevation: bool = _option(False, "estimate elevation_deg from the image")
    distance: float | None = _option(None, "distance of the cameras from the object", limits=(0.5, 10.0))
    seed: int | None = _option(
        None, "seed of all noise; without one the server draws one and reports it", limits=(0, 2**63 - 1), integer=True
    )
    steps: int | None = _option(None, "denoising steps", limits=(1, 200), integer=True)
    scheduler: str | None = _option(None, "sampler", choices=SCHEDULERS)
    eta: float | None = _option(None, "noise added by each step of ddim", limits=(0.0, 1.0))
    guidance_scale: float | None = _option(None, "strength of the prompt", limits=(0.0, 50.0))
    triangle_guidance: bool = _option(
        False, "guidance rises from min_guidance_scale at the front view to guidance_scale at the back"
    )
    min_guidance_scale: float = _option(1.0, "guidance of the front view with triangle_guidance", limits=(0.0, 50.0))
    control_type: str | None = _option(None, "what control_image shows", choices=CONTROL_TYPES)
    control_scale: float = _option(1.0, "strength of control_image", limits=(0.0, 2.0))
    guess_mode: bool = _option(False, "let control_image say what the object is; the prompt may be empty")
    extract_canny: bool = _option(False, "control_image is a photo: its edges become the canny map")
    init_std: float = _option(
        0.0, "start from a dark blob as wide as this share of two views, not from noise; 0 is off", limits=(0.0, 2.0)
    )
    init_noise_strength: float = _option(
        0.98, "with init_std: share of the steps that are taken, hence of the noise; 1 is off", limits=(0.0, 1.0)
    )
    init_background: float = _option(
        0.0, "with init_std: grey that is subtracted from the white around the blob", limits=(0.0, 1.0)
    )
    opacity_threshold_render: float = _option(
        0.0, "splats must be more opaque than this to be drawn in frames", limits=(0.0, 1.0)
    )
    opacity_threshold_asset: float = _option(
        0.0, "splats must be more opaque than this to be part of the result", limits=(0.0, 1.0)
    )
    frame_size: int = _option(256, "width and height of every frame, pixels", limits=(16, 2048), integer=True)
    frame_poses: np.ndarray | None = None
    format: str = _option(
        "raw", "file that the server makes; ply_compat is the published script's own, byte for byte", choices=FORMATS
    )

    def validate(self) -> "GenerationRequest":
        """Return self, or raise InvalidRequestError naming the first bad field, its value and what is allowed."""
        self.check_fields()
        check_together(self)
        return self

    def check_fields(self) -> None:
        """Refuse what `validate` refuses, each field alone: whether they go together is not looked at."""
        for name in ("prompt", "negative_prompt"):
            check_text(name, getattr(self, name))
        for field in dataclasses.fields(self):
            value, about = getattr(self, field.name), field.metadata
            if value is None and field.default is None:
                continue
            if about.get("choices"):
                check_choice(field.name, value, about["choices"])
            elif about.get("limits"):
                check_number(field.name, value, *about["limits"], integer=about["integer"])
            elif about.get("file"):
                check_file(field.name, value)
            elif isinstance(field.default, bool):
                check_flag(field.name, value)
        if self.frame_poses is not None:
            check_poses(self.frame_poses, self.frame_size, POSE_RANGES)

    def with_defaults(self, **defaults: Any) -> "GenerationRequest":
        """Fill the fields that are still None, and, once it is known, the elevation in poses that leave it open."""
        filled = dataclasses.replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})
        if filled.elevation_deg is None or filled.frame_poses is None:
            return filled
        poses = np.array(filled.frame_poses, np.float32).reshape(-1, len(POSE_COLUMNS))
        poses[np.isnan(poses[:, 0]), 0] = filled.elevation_deg
        return dataclasses.replace(filled, frame_poses=poses)

    @property
    def has_blob_start(self) -> bool:
        """Whether the blob takes part: a share of 1 would be all noise, which is where requests start anyway."""
        return self.init_std > 0 and self.init_noise_strength < 1

    # --- the two forms on the wire ---

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The request as the small tensors of `contract.REQUEST_TENSORS`; fields that are None are left out."""
        tensors = {}
        for spec in REQUEST_TENSORS:
            value = getattr(self, spec.name.lower())
            if value is None:
                continue
            if spec.datatype == "BYTES":
                data = value if isinstance(value, bytes) else value.encode()
                tensors[spec.name] = np.array([data], dtype=np.object_)
            else:
                array = np.asarray(value, dtype=_NUMPY[spec.datatype])
                tensors[spec.name] = array.reshape(1) if spec.dims == (1,) else array
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "GenerationRequest":
        """Read what `to_tensors` wrote; raises InvalidRequestError for text that is not UTF-8 or a bad value."""
        values = decode_tensors(tensors, REQUEST_TENSORS)
        if not {"prompt", *FILES} & set(values):
            raise InvalidRequestError("prompt is missing")
        return cls(**values).validate()

    def to_dict(self) -> dict[str, Any]:
        """The request as plain JSON types, without its images; None for elevations of poses that are left open."""
        values = {name: getattr(self, name) for name in OPTIONS if name not in FILES}
        values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        if self.frame_poses is not None:
            poses = np.asarray(self.frame_poses, np.float32).tolist()
            values["frame_poses"] = [[None if number != number else number for number in pose] for pose in poses]
        return values

    def to_json(self) -> str:
        """The request as one JSON object, without its images: what the stages behind `encode` need of it."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "GenerationRequest":
        """Read what `to_json` wrote, with the checks of every field, since each stage can be called directly.

        Whether options go together is not checked again: that depends on images, which this form leaves out, and
        `encode` has seen them.
        """
        try:
            values = json.loads(text)
            if values.get("frame_poses") is not None:
                poses = np.asarray(values["frame_poses"], np.float32)
                values["frame_poses"] = poses.reshape(0, len(POSE_COLUMNS)) if poses.shape == (0,) else poses
            request = cls(values.pop("prompt"), **values)
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError):
            raise InvalidRequestError("REQUEST is not the JSON form of a generation request") from None
        request.check_fields()
        if request.elevation_deg is not None and request.frame_poses is not None:
            if np.isnan(request.frame_poses[:, 0]).any():  # else a stage would draw from nowhere
                raise InvalidRequestError("frame_poses leaves an elevation open: must be filled in by encode")
        return request


OPTIONS = {field.name: field for field in dataclasses.fields(GenerationRequest)}
# the inclusive ranges and the choices of the table above, for those who need them alone
RANGES: dict[str, tuple[float, float]] = {
    name: field.metadata["limits"] for name, field in OPTIONS.items() if field.metadata.get("limits")
}
CHOICES: dict[str, tuple[str, ...]] = {
    name: field.metadata["choices"] for name, field in OPTIONS.items() if field.metadata.get("choices")
}
FILES = tuple(name for name, field in OPTIONS.items() if field.metadata.get("file"))
POSE_RANGES: dict[str, tuple[float, float]] = {
    "elevation_deg": RANGES["elevation_deg"],
    "azimuth_deg": (-3600.0, 3600.0),
    "distance": RANGES["distance"],
    "splat_scale": (0.0, 10.0),
}
_NUMPY: dict[str, Any] = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}


def decode_tensors(tensors: dict[str, np.ndarray], specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    """Field -> value of those of these tensors that were sent; InvalidRequestError for what is none of its type."""
    values: dict[str, Any] = {}
    for spec in specs:
        tensor = tensors.get(spec.name)
        if tensor is None:
            continue
        name = spec.name.lower()
        if spec.dims != (1,):
            values[name] = tensor
        elif tensor.size != 1:
            raise InvalidRequestError(f"{name} has shape {list(tensor.shape)}: must be [1]")
        elif name in FILES:
            values[name] = tensor.reshape(-1)[0]
        elif spec.datatype == "BYTES":
            values[name] = _decode_text(name, tensor.reshape(-1)[0])
        else:
            values[name] = _decode_number(tensor.reshape(-1)[0])
    return values


def _decode_text(name: str, raw: Any) -> str:
    try:
        return raw.decode() if isinstance(raw, bytes) else str(raw)
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{name} is not valid UTF-8 text") from None


def _decode_number(value: Any) -> Any:
    """A scalar tensor's value; of FP32 the shortest decimal that it stands for.

    So 0.9 is 0.9 again, not 0.8999999762: int(20 * 0.9) steps are 18.
    """
    return float(str(value)) if isinstance(value, np.float32) else value.item()
