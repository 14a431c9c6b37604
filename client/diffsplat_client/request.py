"""GenerationRequest: every option of one generation, its range, and its two forms on the wire."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffsplat_client.contract import FORMATS, POSE_COLUMNS, REQUEST_TENSORS, SCHEDULERS
from diffsplat_client.errors import InvalidRequestError

MAX_PROMPT_CHARACTERS = 2000
MAX_FRAMES = 720
MAX_FRAME_PIXELS = 100_000_000  # of all frames together; 300 MB of bytes on the wire


def _option(
    default: Any,
    help: str,
    *,
    limits: tuple[float, float] | None = None,
    integer: bool = False,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """One line of the field table: what the checks below and the command line know about a field."""
    metadata = {"help": help, "limits": limits, "integer": integer, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One generation. `None` leaves the choice to the served bundle; limits are inclusive.

    `frame_poses` is float32 [F, 4]: elevation above the horizon in degrees, azimuth in degrees, distance, factor on
    the splats' size. The four generated views stand at azimuth 0, 90, 180, 270.
    """

    prompt: str
    negative_prompt: str = _option("", "what the object should not be")
    elevation_deg: float | None = _option(
        None, "elevation of the generated views above the horizon, degrees", limits=(-89.0, 89.0)
    )
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
    opacity_threshold_render: float = _option(
        0.0, "splats must be more opaque than this to be drawn in frames", limits=(0.0, 1.0)
    )
    opacity_threshold_asset: float = _option(
        0.0, "splats must be more opaque than this to be part of the result", limits=(0.0, 1.0)
    )
    frame_size: int = _option(256, "width and height of every frame, pixels", limits=(16, 2048), integer=True)
    frame_poses: np.ndarray | None = None
    format: str = _option("raw", "file that the server makes besides the raw splats", choices=FORMATS)

    def validate(self) -> "GenerationRequest":
        """Return self, or raise InvalidRequestError naming the first bad field, its value and what is allowed."""
        for name in ("prompt", "negative_prompt"):
            _check_text(name, getattr(self, name))
        if not self.prompt.strip():
            raise InvalidRequestError(
                f"prompt = {self.prompt!r}: must contain at least one character that is not blank"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if choices := field.metadata.get("choices"):
                if not isinstance(value, str) or value not in choices:
                    raise InvalidRequestError(f"{field.name} = {_short(value)}: must be one of {', '.join(choices)}")
            elif limits := field.metadata.get("limits"):
                _check_number(field.name, value, *limits, integer=field.metadata["integer"])
        if not isinstance(self.triangle_guidance, bool | np.bool_):
            raise InvalidRequestError(f"triangle_guidance = {_short(self.triangle_guidance)}: must be true or false")
        if self.frame_poses is not None:
            self._check_frames()
        return self

    def _check_frames(self) -> None:
        try:
            poses = np.asarray(self.frame_poses)
        except ValueError:  # rows of different lengths
            raise InvalidRequestError("frame_poses is not a table: must be [F, 4] numbers") from None
        if poses.ndim != 2 or poses.shape[1] != len(POSE_COLUMNS) or poses.dtype.kind not in "fiu":
            raise InvalidRequestError(
                f"frame_poses has shape {list(poses.shape)}, type {poses.dtype}: must be numbers [F, 4]"
            )
        if len(poses) > MAX_FRAMES:
            raise InvalidRequestError(f"frame_poses asks for {len(poses)} frames: at most {MAX_FRAMES} are allowed")
        pixels = len(poses) * self.frame_size**2
        if pixels > MAX_FRAME_PIXELS:
            raise InvalidRequestError(
                f"frame_poses x frame_size asks for {len(poses)} x {self.frame_size} x {self.frame_size} = {pixels} "
                f"pixels: at most {MAX_FRAME_PIXELS} are allowed"
            )
        for column, name in enumerate(POSE_COLUMNS):
            low, high = POSE_RANGES[name]
            bad = np.flatnonzero(~((poses[:, column] >= low) & (poses[:, column] <= high)))  # also catches NaN
            if len(bad):
                value = poses[bad[0], column]
                raise InvalidRequestError(f"frame_poses[{bad[0]}] {name} = {value}: must be in {low:g} .. {high:g}")

    def with_defaults(self, **defaults: Any) -> "GenerationRequest":
        """Fill the fields that are still None."""
        return dataclasses.replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})

    # --- the two forms on the wire ---

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The request as the small tensors of `contract.REQUEST_TENSORS`; fields that are None are left out."""
        tensors = {}
        for spec in REQUEST_TENSORS:
            value = getattr(self, spec.name.lower())
            if value is None:
                continue
            if spec.datatype == "BYTES":
                tensors[spec.name] = np.array([value.encode()], dtype=np.object_)
            else:
                array = np.asarray(value, dtype=_NUMPY[spec.datatype])
                tensors[spec.name] = array.reshape(1) if spec.dims == (1,) else array
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "GenerationRequest":
        """Read what `to_tensors` wrote; raises InvalidRequestError for text that is not UTF-8 or a bad value."""
        values: dict[str, Any] = {}
        for spec in REQUEST_TENSORS:
            tensor = tensors.get(spec.name)
            if tensor is None:
                continue
            name = spec.name.lower()
            if spec.dims != (1,):
                values[name] = tensor
            elif tensor.size != 1:
                raise InvalidRequestError(f"{name} has shape {list(tensor.shape)}: must be [1]")
            elif spec.datatype == "BYTES":
                values[name] = _decode_text(name, tensor.reshape(-1)[0])
            else:
                values[name] = tensor.reshape(-1)[0].item()
        if "prompt" not in values:
            raise InvalidRequestError("prompt is missing")
        return cls(**values).validate()

    def to_dict(self) -> dict[str, Any]:
        """The request as plain JSON types."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        if self.frame_poses is not None:
            values["frame_poses"] = np.asarray(self.frame_poses, np.float32).tolist()
        return values

    def to_json(self) -> str:
        """The request as one JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> "GenerationRequest":
        """Read what `to_json` wrote; the same checks as for tensors, since each stage can be called directly."""
        try:
            values = json.loads(text)
            if values.get("frame_poses") is not None:
                poses = np.asarray(values["frame_poses"], np.float32)
                values["frame_poses"] = poses.reshape(0, len(POSE_COLUMNS)) if poses.shape == (0,) else poses
            request = cls(**values)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise InvalidRequestError("REQUEST is not the JSON form of a generation request") from None
        return request.validate()


OPTIONS = {field.name: field for field in dataclasses.fields(GenerationRequest)}
# the inclusive ranges and the choices of the table above, for those who need them alone
RANGES: dict[str, tuple[float, float]] = {
    name: field.metadata["limits"] for name, field in OPTIONS.items() if field.metadata.get("limits")
}
CHOICES: dict[str, tuple[str, ...]] = {
    name: field.metadata["choices"] for name, field in OPTIONS.items() if field.metadata.get("choices")
}
POSE_RANGES: dict[str, tuple[float, float]] = {
    "elevation_deg": RANGES["elevation_deg"],
    "azimuth_deg": (-3600.0, 3600.0),
    "distance": RANGES["distance"],
    "splat_scale": (0.0, 10.0),
}
_NUMPY: dict[str, Any] = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise InvalidRequestError(f"{name} = {_short(text)}: must be text")
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequestError(f"{name} has {len(text)} characters: at most {MAX_PROMPT_CHARACTERS} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone half of a surrogate pair, which JSON can carry
        raise InvalidRequestError(f"{name} = {_short(text)}: must be valid Unicode text") from None


def _check_number(name: str, value: Any, low: float, high: float, *, integer: bool) -> None:
    kind = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InvalidRequestError(f"{name} = {_short(value)}: must be {'an integer' if integer else 'a number'}")
    if not low <= value <= high:  # also catches NaN
        raise InvalidRequestError(f"{name} = {_short(value)}: must be in {low} .. {high}")


def _decode_text(name: str, raw: Any) -> str:
    try:
        return raw.decode() if isinstance(raw, bytes) else str(raw)
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{name} is not valid UTF-8 text") from None
