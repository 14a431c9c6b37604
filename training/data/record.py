"""One object on disk: the record schema (a dict of bytes) and its exact quantisation.

Keys, with ``i`` = 0 .. 39: ``uid``; ``{i:05}.png`` RGBA 8 bit, straight alpha; ``{i:05}_nd.png`` 16 bit, three channels
of world normal and one of planar depth, or the same as floats in ``{i:05}_nd.exr``; ``{i:05}_albedo.png`` and
``{i:05}_mr.png`` RGB 8 bit (the latter metallic, roughness, unused); ``{i:05}.json`` the camera; ``txt`` captions, one
per line. No other module depends on the packing.

Frames: cameras are camera-to-world with OpenCV camera axes in a **z-up** (Blender) world. In memory, normals are in
the **y-up** world ``(X, Y, Z) = (x, z, -y)``; on disk their x is negated as well, a quirk of the published data.
"""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

DEPTH_RANGE = 5.0  # depth that fills 16 bits
U16_MAX = 65535
NORMAL_STEP = 2.0 / U16_MAX
DEPTH_STEP = DEPTH_RANGE / U16_MAX

MAP_SUFFIXES = {  # map -> endings of the parts that may hold it
    "rgb": (".png",),
    "normal": ("_nd.png", "_nd.exr"),
    "depth": ("_nd.png", "_nd.exr"),
    "albedo": ("_albedo.png",),
    "metallic_roughness": ("_mr.png",),
}
TRAINING_MAPS = frozenset({"rgb", "normal", "depth"})  # what a `Sample` is made of

Record = Mapping[str, bytes]


class BrokenRecord(ValueError):
    """An object cannot be read or used; the message names it and the part that is wrong."""


class RawViews(NamedTuple):
    """Views of one object as numbers."""

    rgba: NDArray[np.float32]  # [V, H, W, 4] in [0, 1], straight alpha
    normals: NDArray[np.float32]  # [V, H, W, 3] unit, y-up world; without channels if the record has none
    depths: NDArray[np.float32]  # [V, H, W] planar (along the optical axis), 0 = background; all 0 without normals
    camera_to_world_zup: NDArray[np.float64]  # [V, 4, 4] OpenCV camera axes, z-up world


class PackedViews(NamedTuple):
    """Views of one object as they are stored: 12 bytes per pixel, and 6 more with materials."""

    rgba: NDArray[np.uint8]  # [V, H, W, 4]
    normal_depth: NDArray[np.uint16]  # [V, H, W, 4]: (-x, y, z) of the y-up normal, depth; [V, H, W, 0] without maps
    camera_to_world_zup: NDArray[np.float64]  # [V, 4, 4]
    albedo: NDArray[np.uint8] | None = None  # [V, H, W, 3]
    metallic_roughness: NDArray[np.uint8] | None = None  # [V, H, W, 3]: metallic, roughness, unused

    def select(self, rows: Sequence[int]) -> "PackedViews":
        """The views at the given rows, in that order."""
        index = np.asarray(rows)
        albedo = None if self.albedo is None else self.albedo[index]
        shine = None if self.metallic_roughness is None else self.metallic_roughness[index]
        return PackedViews(
            self.rgba[index], self.normal_depth[index], self.camera_to_world_zup[index], albedo, shine
        )  # fmt: skip


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
    values = packed.normal_depth.astype(np.float32) / U16_MAX  # [V, H, W, 4 or 0]
    shown = values.shape[-1] > 0
    return RawViews(
        rgba=packed.rgba.astype(np.float32) / 255.0,
        normals=(2.0 * values[..., :3] - 1.0) * _NORMAL_SIGNS if shown else values,
        depths=values[..., 3] * DEPTH_RANGE if shown else np.zeros(values.shape[:3], np.float32),
        camera_to_world_zup=packed.camera_to_world_zup,
    )


def encode_record(
    uid: str, packed: PackedViews, view_ids: Sequence[int], captions: Sequence[str] = ()
) -> dict[str, bytes]:
    """The record of an object whose view ``view_ids[k]`` is row k of `packed`; absent maps leave no part."""
    record = {"__key__": uid.encode(), "uid": uid.encode()}
    for row, view in enumerate(view_ids):
        record[f"{view:05}.png"] = _encode_png(packed.rgba[row])
        if packed.normal_depth.shape[-1]:
            record[f"{view:05}_nd.png"] = _encode_png(packed.normal_depth[row])
        for suffix, maps in (("_albedo.png", packed.albedo), ("_mr.png", packed.metallic_roughness)):
            if maps is not None:
                record[f"{view:05}{suffix}"] = _encode_png(maps[row])
        record[f"{view:05}.json"] = _encode_camera(packed.camera_to_world_zup[row])
    if captions:
        record["txt"] = "\n".join(captions).encode()
    return record


def decode_record(record: Record, view_ids: Sequence[int], maps: Collection[str] = TRAINING_MAPS) -> PackedViews:
    """The named views of a record, with the named maps (`MAP_SUFFIXES`); images and cameras always.

    Raises:
        BrokenRecord: a part is missing or broken, or the images differ in size; the message names the part.
        ValueError: `view_ids` is empty.
    """
    if not view_ids:
        raise ValueError("view_ids is empty; at least one view is needed")
    rgba = _stack([_decode_png(record, f"{view:05}.png", np.uint8, (4,)) for view in view_ids], view_ids, ".png")
    cameras = np.stack([_decode_camera(record, f"{view:05}.json") for view in view_ids])
    packed = PackedViews(rgba, np.zeros((*rgba.shape[:3], 0), np.uint16), cameras)
    if not {"normal", "depth"}.isdisjoint(maps):
        values = [_decode_normal_depth(record, view, rgba[row, ..., 3]) for row, view in enumerate(view_ids)]
        packed = packed._replace(normal_depth=_stack(values, view_ids, "_nd", rgba.shape))
    for name in ("albedo", "metallic_roughness"):
        if name in maps:
            (suffix,) = MAP_SUFFIXES[name]
            images = [_decode_png(record, f"{view:05}{suffix}", np.uint8, (3, 4))[..., :3] for view in view_ids]
            packed = packed._replace(**{name: _stack(images, view_ids, suffix, rgba.shape)})
    return packed


def record_uid(record: Record) -> str:
    """The object's id."""
    return _part(record, "uid").decode()


def usable_views(parts: Collection[str], count: int) -> tuple[int, ...]:
    """Views below `count` that have an image and a camera among a record's parts."""
    return tuple(i for i in range(count) if f"{i:05}.png" in parts and f"{i:05}.json" in parts)


def parts_of_views(view_ids: Sequence[int], maps: Collection[str]) -> list[str]:
    """Every part that may hold these views' images, cameras and named maps."""
    suffixes = dict.fromkeys([".json", ".png", *(suffix for name in maps for suffix in MAP_SUFFIXES[name])])
    return [f"{view:05}{suffix}" for view in view_ids for suffix in suffixes]


def maps_of(parts: Collection[str], view: int) -> frozenset[str]:
    """Maps that a record has of one view."""
    return frozenset(
        name for name, suffixes in MAP_SUFFIXES.items() if any(f"{view:05}{suffix}" in parts for suffix in suffixes)
    )


def _part(record: Record, key: str) -> bytes:
    if key not in record:
        raise BrokenRecord(f"record has no part {key!r}")
    return record[key]


def _stack(
    images: list[np.ndarray], view_ids: Sequence[int], suffix: str, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """One array of equally large images."""
    height, width = images[0].shape[:2] if shape is None else shape[1:3]
    for view, image in zip(view_ids, images, strict=True):
        if image.shape[:2] != (height, width):
            raise BrokenRecord(
                f"record part '{view:05}{suffix}' is {image.shape[1]} x {image.shape[0]} pixels large; "
                f"others of the object are {width} x {height}"
            )
    return np.stack(images)


def _swap_red_blue(image: np.ndarray) -> np.ndarray:
    """RGB(A) <-> BGR(A): OpenCV keeps its images blue first."""
    return np.ascontiguousarray(image[..., [2, 1, 0, 3][: image.shape[-1]]])


def _encode_png(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", _swap_red_blue(image))
    assert done, "OpenCV could not write a PNG"
    return data.tobytes()


def _decode_png(record: Record, key: str, dtype: type[np.generic], channels: tuple[int, ...]) -> np.ndarray:
    data = np.frombuffer(_part(record, key), np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise BrokenRecord(f"record part {key!r} is not a readable PNG")
    if image.dtype != dtype or image.ndim != 3 or image.shape[2] not in channels:
        wanted = " or ".join(map(str, channels))
        raise BrokenRecord(
            f"record part {key!r} is {image.dtype} {image.shape}; {np.dtype(dtype)} [H, W, {wanted}] is needed"
        )
    return _swap_red_blue(image)


def _decode_normal_depth(record: Record, view: int, alpha: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Normal and depth of one view, from the 16-bit PNG or, where there is none, from floats. [H, W, 4]."""
    key = f"{view:05}_nd.exr"
    if key not in record or f"{view:05}_nd.png" in record:
        return _decode_png(record, f"{view:05}_nd.png", np.uint16, (4,))
    values = read_exr(_part(record, key), f"record part {key!r}")
    if values.shape[-1] != 4:
        raise BrokenRecord(f"record part {key!r} has {values.shape[-1]} of the channels R, G, B and A")
    values = np.where(np.isfinite(values), values, 0.0)  # published renders hold NaN where a surface has no normal
    depth = values[..., 3]
    if alpha.shape == depth.shape:
        depth = np.where(alpha > 0, depth, 0.0)
    if depth.min() < 0.0 or depth.max() > DEPTH_RANGE:
        raise BrokenRecord(
            f"record part {key!r}: depths from {depth.min():.4g} to {depth.max():.4g} must lie in [0, {DEPTH_RANGE}]"
        )
    unit = np.concatenate([0.5 * np.clip(values[..., :3], -1.0, 1.0) + 0.5, depth[..., None] / DEPTH_RANGE], axis=-1)
    return np.rint(unit * U16_MAX).astype(np.uint16)


def read_exr(data: bytes, name: str) -> NDArray[np.float32]:
    """Channels R, G, B and A of an EXR file, or those it has of them, else its only one. [H, W, C].

    Raises:
        BrokenRecord: the file cannot be read; the message begins with `name`.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise ValueError(f"{name}: reading EXR needs `pip install -e .[training]`") from error
    try:
        channels = OpenEXR.File(io.BytesIO(data), separate_channels=True).channels()
        found = [channel for channel in "RGBA" if channel in channels] or list(channels)[:1]
        values = np.stack([channels[channel].pixels for channel in found], axis=-1)
    except (RuntimeError, ValueError, TypeError) as error:
        raise BrokenRecord(f"{name} is not a readable EXR image: {error}") from error
    return values.astype(np.float32)


def _encode_camera(camera_to_world: NDArray[np.float64]) -> bytes:
    columns = {name: camera_to_world[:3, column].tolist() for column, name in enumerate(("x", "y", "z", "origin"))}
    return json.dumps(columns).encode()


def _decode_camera(record: Record, key: str) -> NDArray[np.float64]:
    try:
        fields = json.loads(_part(record, key))
        columns = np.array([fields[name] for name in ("x", "y", "z", "origin")], np.float64)  # [4, 3]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BrokenRecord(f"record part {key!r} is not a camera with fields x, y, z, origin") from error
    if columns.shape != (4, 3) or not np.isfinite(columns).all():
        raise BrokenRecord(f"record part {key!r}: x, y, z, origin must each be three finite numbers")
    camera_to_world = np.eye(4)
    camera_to_world[:3] = columns.T
    return camera_to_world
