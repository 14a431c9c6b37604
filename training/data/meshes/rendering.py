"""A mesh -> the record of an object: normalised, framed, cast from every view of the layout."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL
from training.data.camera_chain import z_up_to_y_up
from training.data.meshes.casting import Caster
from training.data.meshes.loading import MeshError
from training.data.meshes.surface import Surface, extents, transformed
from training.data.procedural.synthetic import layout_cameras
from training.data.record import DEPTH_RANGE, PackedViews, RawViews, encode_record, pack_views
from training.data.views import GOBJAVERSE_LAYOUT

LAYOUT = GOBJAVERSE_LAYOUT
FRAME_MARGIN = 0.05  # share of the half image that stays free around the object: 1.6 pixels of 64

_RENDER_STREAM = 41


@dataclass(frozen=True)
class RenderSettings:
    """How every object of a run is rendered."""

    resolution: int = 256  # image side in pixels
    samples: int = 3  # rays per pixel along a side, 1 to 8; odd, so that one goes through the centre
    geometry: Literal["mean", "centre"] = "mean"  # normal and depth of a pixel: of all its rays, or the central one's
    distance_range: tuple[float, float] = (1.4, 1.5)  # of the cameras, in sides of the object; more where it needs it
    seed: int = 0  # elevations and distances, together with the object's id

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ValueError: names the field, its value and the allowed range.
        """
        if not 8 <= self.resolution <= 4096:
            raise ValueError(f"resolution = {self.resolution} must lie in [8, 4096]")
        if self.samples not in (1, 3, 5, 7):
            raise ValueError(f"samples = {self.samples} must be 1, 3, 5 or 7")
        low, high = self.distance_range
        if not 1.0 <= low <= high <= 3.0:
            raise ValueError(f"distance_range = {self.distance_range} must be two ascending numbers in [1, 3]")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed} must not be negative")


class RenderedObject(NamedTuple):
    """A record, and what a reader of the log should know of it."""

    record: dict[str, bytes]
    faces: int
    notes: tuple[str, ...]


def render_object(surface: Surface, uid: str, settings: RenderSettings, captions: Sequence[str] = ()) -> RenderedObject:
    """Every view of the layout, as a record.

    Raises:
        MeshError: the object has no extent, or nothing of it is visible.
    """
    surface = normalised(surface)
    cameras = framing_cameras(surface, uid, settings)
    copies = dict(LAYOUT.duplicate_of)
    distinct = [view for view in range(LAYOUT.count) if view not in copies]
    packed, cut_rays = render_packed(surface, cameras[distinct], settings)
    if not packed.rgba[..., 3].any():
        raise MeshError("nothing of it is visible: every surface is transparent or degenerate")
    record = encode_record(uid, packed, distinct, captions)
    for view, original in copies.items():
        for key in [key for key in record if key.startswith(f"{original:05}")]:
            record[key.replace(f"{original:05}", f"{view:05}", 1)] = record[key]
    notes = (f"{cut_rays} rays cross more transparent surfaces than are followed",) if cut_rays else ()
    return RenderedObject(record, len(surface.faces), notes)


def normalised(surface: Surface) -> Surface:
    """The surface in [-0.5, 0.5]^3: its box centred, the longest side 1.

    Raises:
        MeshError: the object has no extent.
    """
    low, high = extents(surface)
    side = float((high - low).max())
    if not 0.0 < side < np.inf:
        raise MeshError(f"its largest side is {side:g}")
    return transformed(surface, np.eye(3) / side, 0.5 * (low + high))


def framing_cameras(surface: Surface, uid: str, settings: RenderSettings) -> NDArray[np.float64]:
    """Cameras of the layout, [40, 4, 4], z-up world, all at one distance from which no view cuts the object.

    The distance is drawn from `settings.distance_range`, and larger where the object would not fit.
    """
    rng = np.random.default_rng([settings.seed, _RENDER_STREAM, zlib.crc32(uid.encode())])
    drawn = float(rng.uniform(*settings.distance_range))
    cameras = layout_cameras(LAYOUT, 1.0, rng)
    used = surface.vertices[np.unique(surface.faces)]
    half = 0.5 * (1.0 - FRAME_MARGIN) / DIFFSPLAT_FOCAL  # tangent of half the usable angle
    needed = 0.0
    for rotation in z_up_to_y_up(cameras)[:, :3, :3]:
        seen = used @ rotation  # [N, 3] camera axes, from the origin
        needed = max(needed, float((np.abs(seen[:, :2]).max(axis=1) / half - seen[:, 2]).max()))
    cameras[:, :3, 3] *= max(drawn, needed)
    assert max(drawn, needed) + np.sqrt(0.75) < DEPTH_RANGE, "a unit cube can always be framed within the depth range"
    return cameras


def render_packed(
    surface: Surface, camera_to_world_zup: NDArray[np.float64], settings: RenderSettings
) -> tuple[PackedViews, int]:
    """Views of a normalised surface (y-up) from cameras [V, 4, 4] of the z-up world.

    Returns:
        The views with albedo, metallic and roughness, and the number of rays that were given up.
    """
    caster = Caster(surface, settings.resolution, settings.samples, settings.geometry == "centre")
    casts = [caster.cast(camera) for camera in z_up_to_y_up(camera_to_world_zup)]
    maps = np.stack([cast.maps for cast in casts])  # [V, H, W, 13]
    raw = RawViews(maps[..., :4], maps[..., 9:12], maps[..., 12], camera_to_world_zup)
    bytes_ = np.rint(np.clip(maps[..., 4:9], 0.0, 1.0) * 255.0).astype(np.uint8)
    padding = np.zeros_like(bytes_[..., :1])
    materials = np.concatenate([bytes_[..., 3:5], padding], axis=-1)
    packed = pack_views(raw)._replace(albedo=bytes_[..., :3], metallic_roughness=materials)
    return packed, sum(cast.cut_rays for cast in casts)
