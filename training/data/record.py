"""One object on disk: the record schema (a dict of bytes) and its exact quantisation.

Keys, with ``i`` = 0 .. 39: ``uid``; ``{i:05}.png`` RGBA 8 bit, straight alpha; ``{i:05}_nd.png`` 16 bit, three channels
of world normal and one of planar depth; ``{i:05}.json`` the camera. No other module depends on the packing.

Frames: cameras are camera-to-world with OpenCV camera axes in a **z-up** (Blender) world. In memory, normals are in
the **y-up** world ``(X, Y, Z) = (x, z, -y)``; on disk their x is negated as well, a quirk of the published data.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

DEPTH_RANGE = 5.0  # depth that fills 16 bits
U16_MAX = 65535
NORMAL_STEP = 2.0 / U16_MAX
DEPTH_STEP = DEPTH_RANGE / U16_MAX

Record = Mapping[str, bytes]


class RawViews(NamedTuple):
    """Views of one object as numbers."""

    rgba: NDArray[np.float32]  # [V, H, W, 4] in [0, 1], straight alpha
    normals: NDArray[np.float32]  # [V, H, W, 3] unit, y-up world
    depths: NDArray[np.float32]  # [V, H, W] planar (along the optical axis), 0 = background
    camera_to_world_zup: NDArray[np.float64]  # [V, 4, 4] OpenCV camera axes, z-up world


class PackedViews(NamedTuple):
    """Views of one object as they are stored: 12 bytes per pixel."""

    rgba: NDArray[np.uint8]  # [V, H, W, 4]
    normal_depth: NDArray[np.uint16]  # [V, H, W, 4]: (-x, y, z) of the y-up normal, depth
    camera_to_world_zup: NDArray[np.float64]  # [V, 4, 4]

    def select(self, rows: Sequence[int]) -> "PackedViews":
        """The views at the given rows, in that order."""
        index = np.asarray(rows)
        return PackedViews(self.rgba[index], self.normal_depth[index], self.camera_to_world_zup[index])


_NORMAL_SIGNS = np.array([-1.0, 1.0, 1.0], np.float32)


def pack_views(views: RawViews) -> PackedViews:
    """Quantise to nearest: colours in 1/255, normals in `NORMAL_STEP`, depths in `DEPTH_STEP`.

    Raises:
        ValueError: a depth is outside [0, DEPTH_RANGE].
    """
    nearest, farthest = float(views.depths.min()), float(views.depths.max())
    if nearest < 0.0 or farthest > DEPTH_RANGE:
        raise ValueError(f"depths from {nearest:.4g} to {farthest:.4g} must lie in [0, {DEPTH_RANGE}]")
    unit = 0.5 * views.normals * _NORMAL_SIGNS + 0.5
    values = np.concatenate([unit, views.depths[..., None] / DEPTH_RANGE], axis=-1)  # [V, H, W, 4]
    return PackedViews(
        rgba=np.rint(np.clip(views.rgba, 0.0, 1.0) * 255.0).astype(np.uint8),
        normal_depth=np.rint(np.clip(values, 0.0, 1.0) * U16_MAX).astype(np.uint16),
        camera_to_world_zup=views.camera_to_world_zup,
    )


def unpack_views(packed: PackedViews) -> RawViews:
    """Numbers from stored views; the inverse of `pack_views` to within half a step."""
    values = packed.normal_depth.astype(np.float32) / U16_MAX  # [V, H, W, 4]
    return RawViews(
        rgba=packed.rgba.astype(np.float32) / 255.0,
        normals=(2.0 * values[..., :3] - 1.0) * _NORMAL_SIGNS,
        depths=values[..., 3] * DEPTH_RANGE,
        camera_to_world_zup=packed.camera_to_world_zup,
    )


def encode_record(uid: str, packed: PackedViews, view_ids: Sequence[int]) -> dict[str, bytes]:
    """The record of an object whose view ``view_ids[k]`` is row k of `packed`."""
    record = {"__key__": uid.encode(), "uid": uid.encode()}
    for row, view in enumerate(view_ids):
        record[f"{view:05}.png"] = _encode_png(packed.rgba[row])
        record[f"{view:05}_nd.png"] = _encode_png(packed.normal_depth[row])
        record[f"{view:05}.json"] = _encode_camera(packed.camera_to_world_zup[row])
    return record


def decode_record(record: Record, view_ids: Sequence[int]) -> PackedViews:
    """The named views of a record.

    Raises:
        ValueError: a part is missing or broken; the message names its key.
    """
    if not view_ids:
        raise ValueError("view_ids is empty; at least one view is needed")
    return PackedViews(
        rgba=np.stack([_decode_png(record, f"{view:05}.png", np.uint8) for view in view_ids]),
        normal_depth=np.stack([_decode_png(record, f"{view:05}_nd.png", np.uint16) for view in view_ids]),
        camera_to_world_zup=np.stack([_decode_camera(record, f"{view:05}.json") for view in view_ids]),
    )


def record_uid(record: Record) -> str:
    """The object's id."""
    return _part(record, "uid").decode()


def usable_views(record: Record, count: int) -> tuple[int, ...]:
    """Views below `count` that have an image and a camera."""
    return tuple(i for i in range(count) if f"{i:05}.png" in record and f"{i:05}.json" in record)


def _part(record: Record, key: str) -> bytes:
    if key not in record:
        raise ValueError(f"record has no part {key!r}")
    return record[key]


def _swap_red_blue(image: np.ndarray) -> np.ndarray:
    """RGBA <-> BGRA: OpenCV keeps its images blue first."""
    return np.ascontiguousarray(image[..., [2, 1, 0, 3]])


def _encode_png(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", _swap_red_blue(image))
    assert done, "OpenCV could not write a PNG"
    return data.tobytes()


def _decode_png(record: Record, key: str, dtype: type[np.generic]) -> np.ndarray:
    data = np.frombuffer(_part(record, key), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if image is None:
        raise ValueError(f"record part {key!r} is not a readable PNG")
    if image.dtype != dtype or image.ndim != 3 or image.shape[2] != 4:
        raise ValueError(f"record part {key!r} is {image.dtype} {image.shape}; {np.dtype(dtype)} [H, W, 4] is needed")
    return _swap_red_blue(image)


def _encode_camera(camera_to_world: NDArray[np.float64]) -> bytes:
    columns = {name: camera_to_world[:3, column].tolist() for column, name in enumerate(("x", "y", "z", "origin"))}
    return json.dumps(columns).encode()


def _decode_camera(record: Record, key: str) -> NDArray[np.float64]:
    try:
        fields = json.loads(_part(record, key))
        columns = np.array([fields[name] for name in ("x", "y", "z", "origin")], np.float64)  # [4, 3]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"record part {key!r} is not a camera with fields x, y, z, origin") from error
    if columns.shape != (4, 3) or not np.isfinite(columns).all():
        raise ValueError(f"record part {key!r}: x, y, z, origin must each be three finite numbers")
    camera_to_world = np.eye(4)
    camera_to_world[:3] = columns.T
    return camera_to_world
