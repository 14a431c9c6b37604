"""OutputOptions: file format, thresholds and frames, which every kind of request has."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from diffsplat_client.contract import OUTPUT_TENSORS, POSE_COLUMNS
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.formats import FORMAT_CHOICES, FORMATS, RAW, FileFormat
from diffsplat_client.formats.axes import FRAME_CHOICES
from diffsplat_client.option_table import check_options, option
from diffsplat_client.request_checks import check_poses

ELEVATION_LIMITS = (-89.0, 89.0)  # degrees above the horizon
DISTANCE_LIMITS = (0.5, 10.0)  # of a camera from the origin, world units
MAX_DEADLINE_S = 604_800.0  # a week
MAX_GAUSSIANS = 4_194_304  # of an object: 16 views of 512 x 512
POSE_LIMITS: dict[str, tuple[float, float]] = {
    "elevation_deg": ELEVATION_LIMITS,
    "azimuth_deg": (-3600.0, 3600.0),
    "distance": DISTANCE_LIMITS,
    "splat_scale": (0.0, 10.0),
}
_Options = TypeVar("_Options", bound="OutputOptions")


@dataclass(frozen=True, eq=False, kw_only=True)
class OutputOptions:
    """The options that every kind of request has, by keyword.

    `frame_poses` is float32 [F, 4]: elevation above the horizon in degrees, azimuth in degrees (0 looks from +z, 90
    from +x), distance, factor on the splats' size.
    """

    opacity_threshold_render: float = option(
        0.0, "only splats more opaque than this are drawn in frames", limits=(0.0, 1.0)
    )
    opacity_threshold_asset: float = option(
        0.0, "only splats more opaque than this are part of the result", limits=(0.0, 1.0)
    )
    num_gaussians: int | None = option(
        None, "at most this many splats in the result: the most visible ones", limits=(1, MAX_GAUSSIANS), integer=True
    )
    frame_size: int = option(256, "width and height of every frame, pixels", limits=(16, 2048), integer=True)
    frame_poses: np.ndarray | None = None
    formats: Sequence[str] = option(
        (RAW,),
        "files that the server makes; raw is the splats themselves, ply_compat the published script's own file",
        choices=FORMAT_CHOICES,
        several=True,
    )
    frame: str = option(
        "",
        "axes of the files: opengl has y up; without it each format's own, which tools expect",
        choices=FRAME_CHOICES,
    )

    deadline_s: float | None = option(
        None, "seconds after which the server gives the request up, in any stage", limits=(0.0, MAX_DEADLINE_S)
    )

    def check_fields(self) -> None:
        """Check each field on its own, not their combinations; InvalidRequestError names the first bad one."""
        check_options(self)
        if self.frame_poses is not None:
            check_poses(self.frame_poses, self.frame_size, POSE_LIMITS)

    @property
    def file_formats(self) -> list[FileFormat]:
        """Of the files asked for."""
        return [FORMATS[name] for name in self.formats if name != RAW]

    def output_options(self) -> "OutputOptions":
        """These options alone, without the rest of the request."""
        return OutputOptions(**{name: getattr(self, name) for name in OUTPUT_OPTIONS})

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON types, without image files; an elevation left open in poses is None."""
        fields = [field for field in dataclasses.fields(self) if not field.metadata.get("file")]
        values = {field.name: getattr(self, field.name) for field in sorted(fields, key=_output_last)}
        values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        if self.frame_poses is not None:
            poses = np.asarray(self.frame_poses, np.float32).tolist()
            values["frame_poses"] = [[None if number != number else number for number in pose] for pose in poses]
        return values

    @classmethod
    def from_dict(cls: type[_Options], values: dict[str, Any]) -> _Options:
        """Inverse of `to_dict`; checks each field but not combinations, which may depend on the images left out.

        Raises:
            InvalidRequestError: a bad value, an unknown field, or not a dictionary.
        """
        try:
            values = {**values}  # TypeError unless it is a mapping
            if isinstance(values.get("formats"), list):  # all that JSON has
                values["formats"] = tuple(values["formats"])
            if values.get("frame_poses") is not None:
                poses = np.asarray(values["frame_poses"], np.float32)
                values["frame_poses"] = poses.reshape(0, len(POSE_COLUMNS)) if poses.shape == (0,) else poses
            request = cls(**values)
        except (ValueError, TypeError, OverflowError):
            raise InvalidRequestError("REQUEST is not the JSON form of a request") from None
        request.check_fields()
        return request


OUTPUT_OPTIONS = tuple(spec.name.lower() for spec in OUTPUT_TENSORS)


def _output_last(field: "dataclasses.Field[Any]") -> bool:
    """Sort key that puts a request's own fields before those of OutputOptions, which dataclasses list first."""
    return field.name in OUTPUT_OPTIONS


def option_fields(request: type[OutputOptions]) -> dict[str, "dataclasses.Field[Any]"]:
    """Name -> field of a kind of request, its own fields first."""
    return {field.name: field for field in sorted(dataclasses.fields(request), key=_output_last)}
