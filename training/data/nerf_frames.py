"""Frames of a ``transforms.json``, as NeRF tools write it: cameras, files and intrinsics of an object's views.

Cameras have OpenGL axes in a z-up world. Read here: ``camera_angle_x`` or ``fl_x fl_y cx cy`` with ``w h``, for all
frames or each; per frame ``file_path``, ``transform_matrix`` and, if they are there, ``mask_path``, ``depth_file_path``
(planar; whole numbers times ``depth_unit_scale_factor``, by default 0.001) and ``normal_file_path`` (world normals,
as ``0.5 n + 0.5`` in whole numbers). The world is moved so that the optical axes meet at the origin, and scaled.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from training.data.camera_chain import REFERENCE_RADIUS, Y_UP_FROM_Z_UP
from training.data.record import BrokenRecord, read_exr

NAMES = ("transforms.json", "transforms_train.json")
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_EXTENSIONS = ("", ".png", ".jpg", ".jpeg", ".webp")


class Frame(NamedTuple):
    """One view."""

    image: Path
    mask: Path | None
    depth: Path | None
    normal: Path | None
    intrinsics: tuple[float, float, float, float] | None  # fx, fy, cx, cy in pixels; None: by `angle_x`
    angle_x: float | None  # horizontal angle of view
    depth_unit: float  # of whole numbers


class Frames(NamedTuple):
    """All views of an object."""

    frames: tuple[Frame, ...]
    camera_to_world_zup: NDArray[np.float64]  # [N, 4, 4] OpenCV axes; the median distance is `REFERENCE_RADIUS`
    scale: float  # from the file's unit


def read_frames(path: Path) -> Frames:
    """Read a ``transforms.json``.

    Raises:
        BrokenRecord: the file is not of this form; the message names it and the field.
    """
    try:
        facts = json.loads(path.read_text())
        entries = facts["frames"]
        matrices = np.array([entry["transform_matrix"] for entry in entries], np.float64)
        frames = tuple(_frame(path, {**facts, **entry}) for entry in entries)
    except OSError as error:
        raise BrokenRecord(f"{path}: cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise BrokenRecord(f"{path}: has no field {error}") from error
    except (ValueError, TypeError) as error:
        raise BrokenRecord(f"{path}: is not a transforms.json: {error}") from error
    if not frames or matrices.shape[1:] not in ((4, 4), (3, 4)) or not np.isfinite(matrices).all():
        raise BrokenRecord(f"{path}: needs frames with a finite 4 x 4 transform_matrix each")
    cameras = np.tile(np.eye(4), (len(frames), 1, 1))
    cameras[:, :3] = matrices[:, :3]
    cameras[:, :3, :3] /= np.linalg.norm(cameras[:, :3, :3], axis=1, keepdims=True)
    cameras[:, :3, 3] -= _meeting_point(cameras)
    distance = float(np.median(np.linalg.norm(cameras[:, :3, 3], axis=1)))
    if not distance > 1e-9:
        raise BrokenRecord(f"{path}: all cameras stand at one point")
    cameras[:, :3, 3] *= REFERENCE_RADIUS / distance
    return Frames(frames, cameras @ _OPENGL_TO_OPENCV, REFERENCE_RADIUS / distance)


def read_image(frame: Frame) -> NDArray[np.uint8]:
    """RGBA, [H, W, 4].

    Raises:
        BrokenRecord: the image cannot be read or has no alpha.
    """
    image = _to_8_bit(_read(frame.image))
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise BrokenRecord(f"{frame.image}: has shape {image.shape}; a colour image is needed")
    colours = image[..., 2::-1]
    if frame.mask is not None:
        mask = _to_8_bit(_read(frame.mask))
        alpha = mask if mask.ndim == 2 else mask[..., 0]
        if alpha.shape != colours.shape[:2]:
            raise BrokenRecord(f"{frame.mask}: has another size than {frame.image.name}")
    elif image.shape[2] == 4:
        alpha = image[..., 3]
    else:
        raise BrokenRecord(f"{frame.image}: has no alpha, and the frame no mask_path; the background must be known")
    return np.ascontiguousarray(np.concatenate([colours, alpha[..., None]], axis=-1))


def read_maps(frame: Frame, scale: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Normals of the y-up world [H, W, 3] and planar depths [H, W] in the scaled unit.

    Raises:
        BrokenRecord: a file cannot be read.
    """
    assert frame.depth is not None and frame.normal is not None
    depth = _numbers(frame.depth)
    depth = depth if depth.ndim == 2 else depth[..., 0]
    if depth.dtype != np.float32:
        depth = depth * frame.depth_unit
    normal = _numbers(frame.normal)[..., :3]
    if normal.dtype != np.float32:
        normal = normal / (255.0 if normal.dtype == np.uint8 else 65535.0) * 2.0 - 1.0
    normals = normal.astype(np.float32) @ Y_UP_FROM_Z_UP.T.astype(np.float32)
    return normals, np.where(np.isfinite(depth), depth, 0.0).astype(np.float32) * np.float32(scale)


def to_standard_view(maps: NDArray[np.float32], frame: Frame, side: int) -> NDArray[np.float32]:
    """Maps [H, W, C] as a camera of DiffSplat's angle of view would see them, [side, side, C]; outside is 0.

    A change of focal length and centre only scales and shifts an image. Colours must be multiplied by alpha before.
    """
    height, width = maps.shape[:2]
    if frame.intrinsics is not None:
        fx, fy, cx, cy = frame.intrinsics
    else:
        assert frame.angle_x is not None
        fx = fy = 0.5 * width / math.tan(0.5 * frame.angle_x)
        cx, cy = 0.5 * width, 0.5 * height
    goal = DIFFSPLAT_FOCAL * side
    scale = np.array([goal / fx, goal / fy])
    shift = 0.5 * side - scale * [cx, cy] - 0.5 + 0.5 * scale  # pixel centres at half numbers, OpenCV's at whole ones
    if side == height == width and np.abs(scale - 1).max() < 1e-3 and np.abs(shift).max() < 0.02:
        return maps
    matrix = np.array([[scale[0], 0.0, shift[0]], [0.0, scale[1], shift[1]]])
    warped = cv2.warpAffine(maps, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return warped.reshape(side, side, -1).astype(np.float32)


def _frame(path: Path, facts: dict[str, Any]) -> Frame:
    folder = path.parent
    image = next((p for suffix in _EXTENSIONS if (p := folder / f"{facts['file_path']}{suffix}").is_file()), None)
    mask, depth, normal = (
        folder / facts[name] if facts.get(name) else None
        for name in ("mask_path", "depth_file_path", "normal_file_path")
    )
    intrinsics = None
    if "fl_x" in facts:
        fx = float(facts["fl_x"])
        intrinsics = (fx, float(facts.get("fl_y", fx)), float(facts["cx"]), float(facts["cy"]))
    elif "camera_angle_x" not in facts:
        raise KeyError("camera_angle_x")
    angle = None if intrinsics else float(facts["camera_angle_x"])
    unit = float(facts.get("depth_unit_scale_factor", 1e-3))
    return Frame(image or folder / facts["file_path"], mask, depth, normal, intrinsics, angle, unit)


def _meeting_point(cameras: NDArray[np.float64]) -> NDArray[np.float64]:
    """The point nearest to all optical axes; the origin if these are almost parallel."""
    axes = cameras[:, :3, 2]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]  # [N, 3, 3] projections onto the axes' planes
    total = across.sum(axis=0)
    if np.linalg.cond(total) > 1e4:
        return np.zeros(3)
    return np.linalg.solve(total, np.einsum("nij,nj->i", across, cameras[:, :3, 3]))


def _numbers(path: Path) -> np.ndarray:
    """Values of an image, floats if it holds such; RGB order."""
    if path.suffix == ".npy":
        try:
            return np.load(path).astype(np.float32)
        except (OSError, ValueError) as error:
            raise BrokenRecord(f"{path}: cannot be read: {error}") from error
    if path.suffix == ".exr":
        return read_exr(_bytes(path), str(path))
    image = _read(path)
    return image if image.ndim == 2 else np.ascontiguousarray(image[..., 2::-1])


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BrokenRecord(f"{path}: cannot be read: {error.strerror}") from error


def _read(path: Path) -> np.ndarray:
    data = np.frombuffer(_bytes(path), np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise BrokenRecord(f"{path}: is not a readable image")
    return image


def _to_8_bit(image: np.ndarray) -> np.ndarray:
    return (image // 257).astype(np.uint8) if image.dtype == np.uint16 else image.astype(np.uint8)
