"""GenerationRequest: every option of one generation, its range, and its two forms on the wire."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffsplat_client.contract import FORMATS, POSE_COLUMNS, REQUEST_TENSORS, SCHEDULERS
from diffsplat_client.errors import InvalidRequestError

MAX_PROMPT_CHARACTERS = 2000
MAX_FRAMES = 720
MAX_FRAME_PIXELS = 100_000_000  # of all frames together; 300 MB of bytes on the wire

# inclusive ranges of the numeric fields
RANGES: dict[str, tuple[float, float]] = {
    "elevation_deg": (-89.0, 89.0),
    "distance": (0.5, 10.0),
    "seed": (0, 2**63 - 1),
    "steps": (1, 200),
    "eta": (0.0, 1.0),
    "guidance_scale": (0.0, 50.0),
    "min_guidance_scale": (0.0, 50.0),
    "opacity_threshold_render": (0.0, 1.0),
    "opacity_threshold_asset": (0.0, 1.0),
    "frame_size": (16, 2048),
}
POSE_RANGES: dict[str, tuple[float, float]] = {
    "elevation_deg": RANGES["elevation_deg"],
    "azimuth_deg": (-3600.0, 3600.0),
    "distance": RANGES["distance"],
    "splat_scale": (0.0, 10.0),
}
CHOICES = {"scheduler": SCHEDULERS, "format": FORMATS}


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One generation. `None` leaves the choice to the served bundle.

    `frame_poses` is float32 [F, 4]: elevation above the horizon in degrees, azimuth in degrees, distance, factor on
    the splats' size. The four generated views stand at azimuth 0, 90, 180, 270.
    """

    prompt: str
    negative_prompt: str = ""
    elevation_deg: float | None = None
    distance: float | None = None
    seed: int | None = None  # None: the server draws one and reports it
    steps: int | None = None
    scheduler: str | None = None
    eta: float | None = None  # DDIM only
    guidance_scale: float | None = None
    triangle_guidance: bool = False  # guidance rises from min_guidance_scale at view 0 to guidance_scale at the back
    min_guidance_scale: float = 1.0
    opacity_threshold_render: float = 0.0
    opacity_threshold_asset: float = 0.0
    frame_size: int = 256
    frame_poses: np.ndarray | None = None
    format: str = "raw"

    def validate(self) -> "GenerationRequest":
        """Return self, or raise InvalidRequestError naming the first bad field, its value and what is allowed."""
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise InvalidRequestError(f"{name} = {text!r}: must be text")
            if len(text) > MAX_PROMPT_CHARACTERS:
                raise InvalidRequestError(f"{name} has {len(text)} characters: at most {MAX_PROMPT_CHARACTERS} are allowed")
        if not self.prompt.strip():
            raise InvalidRequestError(f"prompt = {self.prompt!r}: must contain at least one character that is not blank")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise InvalidRequestError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")
        for name, (low, high) in RANGES.items():
            _check_number(name, getattr(self, name), low, high)
        if not isinstance(self.triangle_guidance, bool):
            raise InvalidRequestError(f"triangle_guidance = {self.triangle_guidance!r}: must be true or false")
        self._check_frames()
        return self

    def _check_frames(self) -> None:
        if self.frame_poses is None:
            return
        poses = np.asarray(self.frame_poses)
        if poses.ndim != 2 or poses.shape[1] != len(POSE_COLUMNS) or not np.issubdtype(poses.dtype, np.number):
            raise InvalidRequestError(f"frame_poses has shape {list(poses.shape)}, type {poses.dtype}: must be [F, 4] numbers")
        if len(poses) > MAX_FRAMES:
            raise InvalidRequestError(f"frame_poses asks for {len(poses)} frames: at most {MAX_FRAMES} are allowed")
        pixels = len(poses) * self.frame_size**2
        if pixels > MAX_FRAME_PIXELS:
            raise InvalidRequestError(
                f"frame_poses x frame_size asks for {len(poses)} x {self.frame_size} x {self.frame_size} = {pixels} pixels: "
                f"at most {MAX_FRAME_PIXELS} are allowed"
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

    def to_json(self) -> str:
        """The request as one JSON object."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.frame_poses is not None:
            values["frame_poses"] = np.asarray(self.frame_poses, np.float32).tolist()
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> "GenerationRequest":
        """Read what `to_json` wrote; the same checks as for tensors, since each stage can be called directly."""
        try:
            values = json.loads(text)
            if values.get("frame_poses") is not None:
                values["frame_poses"] = np.asarray(values["frame_poses"], np.float32).reshape(-1, len(POSE_COLUMNS))
            request = cls(**values)
        except (ValueError, TypeError, AttributeError):
            raise InvalidRequestError("REQUEST is not the JSON form of a generation request") from None
        return request.validate()


_NUMPY = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}
_INTEGERS = {"seed", "steps", "frame_size"}


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if value is None:
        return
    kind = (int, np.integer) if name in _INTEGERS else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise InvalidRequestError(f"{name} = {value!r}: must be {'an integer' if name in _INTEGERS else 'a number'}")
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequestError(f"{name} = {value}: must be in {low} .. {high}")


def _decode_text(name: str, raw: Any) -> str:
    try:
        return raw.decode() if isinstance(raw, bytes) else str(raw)
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{name} is not valid UTF-8 text") from None
