"""ReconstructionRequest: views of an object and output options, and their form on the wire.

All checks raise InvalidRequestError, which names the field, its value and what is allowed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffsplat_client.contract import OUTPUT_TENSORS, RECONSTRUCTION_TENSORS
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.option_tensors import decode_options, encode_options
from diffsplat_client.output_options import DISTANCE_LIMITS, OutputOptions

MAX_VIEWS = 16
MAX_SIDE = 1024  # pixels of a view
MAX_COORD = 10.0  # of coordinate maps: objects lie within about [0, 1] there
FOCAL_RANGE = (0.1, 10.0)  # focal length / image side
RIGID_TOLERANCE = 1e-3

_CHANNELS = {spec.name.lower(): spec.dims[-1] for spec in RECONSTRUCTION_TENSORS if len(spec.dims) == 4}
MAPS = tuple(_CHANNELS)  # images, normals, ...: one value per pixel of each view
CAMERAS = ("camera_to_world", "intrinsics")


@dataclass(frozen=True, eq=False)
class ReconstructionRequest(OutputOptions):
    """One reconstruction from V square views, in any order.

    The served bundle determines the number of views, their size and which maps it takes. Maps are over white: where a
    view shows nothing, every channel is 1. `frame_poses` must give every elevation, since there are no generated views
    to take it from. World and camera axes are those of training, see the fields; the networks have learnt objects
    within [-1, 1]^3 around the origin, seen from a distance of about 1.4, the first view from azimuth 0 (+z).
    """

    images: np.ndarray  # [V, H, W, 3] uint8, or floats in [0, 1]
    camera_to_world: np.ndarray  # [V, 4, 4] rigid; camera x right, y down, z forward; world x right, y up
    intrinsics: np.ndarray | None = None  # [V, 4] fx, fy, cx, cy divided by the image side; None: as in training
    normals: np.ndarray | None = None  # [V, H, W, 3] world normal * 0.5 + 0.5; uint8, or floats in [0, 1]
    coords: np.ndarray | None = None  # [V, H, W, 3] world position * 0.5 + 0.5, floats
    metallic_roughness: np.ndarray | None = None  # [V, H, W, 2] uint8, or floats in [0, 1]

    def validate(self) -> "ReconstructionRequest":
        """Return self, or raise InvalidRequestError for the first field that no bundle would take."""
        images = _numbers("images", self.images, images=True)
        if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
            raise InvalidRequestError(f"images has shape {list(images.shape)}: must be [V, H, W, 3] with H = W")
        views, side = images.shape[:2]
        _check_range("images has V", views, 1, MAX_VIEWS)
        _check_range("images has H = W", side, 1, MAX_SIDE)
        for name in MAPS:
            if getattr(self, name) is not None:
                _check_map(name, getattr(self, name), (views, side, side, _CHANNELS[name]))
        _check_poses(self.camera_to_world, views)
        if self.intrinsics is not None:
            _check_intrinsics(self.intrinsics, views)
        self.check_fields()
        if self.frame_poses is not None and np.isnan(np.asarray(self.frame_poses)[:, 0]).any():
            raise InvalidRequestError(
                "frame_poses leaves an elevation open: must be given, since no views are generated"
            )
        return self

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The tensors of `contract.RECONSTRUCTION_TENSORS`; fields that are None are left out."""
        tensors = encode_options(self, OUTPUT_TENSORS)
        for name in (*MAPS, *CAMERAS):
            if (value := getattr(self, name)) is not None:
                array = np.asarray(value)
                tensors[name.upper()] = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: dict[str, np.ndarray]) -> "ReconstructionRequest":
        """Inverse of `to_tensors`; call `validate` to check the values."""
        values = decode_options(tensors, RECONSTRUCTION_TENSORS)
        for name in ("images", "camera_to_world"):
            if name not in values:
                raise InvalidRequestError(f"{name} is missing")
        return cls(**values)


def _numbers(name: str, value: Any, images: bool = False) -> np.ndarray:
    """The value as an array of floats, or of uint8 if it may be an image."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        raise InvalidRequestError(f"{name} is not an array: must be numbers") from None
    if array.dtype.kind != "f" and not (images and array.dtype == np.uint8):
        raise InvalidRequestError(f"{name} has type {array.dtype}: must be floats{', or uint8' * images}")
    return array


def _check_range(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also catches NaN
        raise InvalidRequestError(f"{what} = {value:g}: must be in {low:g} .. {high:g}")


def _check_map(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Refuse a map whose shape differs from the images', or with values out of range."""
    array = _numbers(name, value, images=name != "coords")  # positions need more than 256 steps
    if array.shape != shape:
        raise InvalidRequestError(f"{name} has shape {list(array.shape)}: must be {list(shape)} to match images")
    if array.dtype == np.uint8:
        return
    low, high = (-MAX_COORD, MAX_COORD) if name == "coords" else (0.0, 1.0)
    fits = (low <= array) & (array <= high)  # false for NaN
    if not fits.all():
        where = tuple(int(i) for i in np.argwhere(~fits)[0])
        _check_range(f"{name}{list(where)}", float(array[where]), low, high)


def _check_poses(value: Any, views: int) -> None:
    """Refuse anything but one rigid pose per view, at a distance from the origin that frames allow too."""
    poses = _numbers("camera_to_world", value)
    if poses.shape != (views, 4, 4):
        raise InvalidRequestError(
            f"camera_to_world has shape {list(poses.shape)}: must be [{views}, 4, 4] to match images"
        )
    if not np.isfinite(poses).all():
        view = int(np.argwhere(~np.isfinite(poses))[0][0])
        raise InvalidRequestError(f"camera_to_world[{view}] holds a value that is not finite: must be finite numbers")
    for view, pose in enumerate(poses.astype(np.float64)):
        rotation, position = pose[:3, :3], pose[:3, 3]
        error = max(np.abs(rotation @ rotation.T - np.eye(3)).max(), np.abs(pose[3] - [0, 0, 0, 1]).max())
        if error > RIGID_TOLERANCE or np.linalg.det(rotation) < 0:
            raise InvalidRequestError(
                f"camera_to_world[{view}] is not a rigid pose (off by {error:.2g}, determinant "
                f"{np.linalg.det(rotation):.2g}): must be a rotation and a position over a row 0 0 0 1, "
                f"to within {RIGID_TOLERANCE:g}"
            )
        _check_range(
            f"camera_to_world[{view}] distance from the origin", float(np.linalg.norm(position)), *DISTANCE_LIMITS
        )


def _check_intrinsics(value: Any, views: int) -> None:
    intrinsics = _numbers("intrinsics", value)
    if intrinsics.shape != (views, 4):
        raise InvalidRequestError(
            f"intrinsics has shape {list(intrinsics.shape)}: must be [{views}, 4] to match images"
        )
    ranges = {"fx": FOCAL_RANGE, "fy": FOCAL_RANGE, "cx": (0.0, 1.0), "cy": (0.0, 1.0)}
    for view, row in enumerate(intrinsics.tolist()):
        for (name, limits), number in zip(ranges.items(), row, strict=True):
            _check_range(f"intrinsics[{view}] {name}, divided by the image side,", number, *limits)
