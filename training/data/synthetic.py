"""Procedural objects: a pure function of (seed, index), rendered on demand, view by view.

`SyntheticObject` knows its primitives, words and the cameras of a whole 40-view layout; it renders any of them at any
resolution, straight to arrays or through the record codec.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from diffsplat.cameras import orbit_camera_to_world
from training.data.camera_chain import y_up_to_z_up
from training.data.captions import COLOURS, ObjectWords, plain_caption
from training.data.record import PackedViews, RawViews, encode_record, pack_views
from training.data.render import render_views
from training.data.shapes import CONE, CUBE, CYLINDER, SPHERE, Primitive
from training.data.views import GOBJAVERSE_LAYOUT, ViewLayout

# Shape id and half extents of the largest instance: centred bounding box in [-0.5, 0.5]^3 and bounding sphere at most
# 0.45, so that it is inside the frame from every side at distance 1.4 (sine of the half angle 19.8 deg * 1.4 = 0.474).
SHAPES: dict[str, tuple[int, tuple[float, float, float]]] = {
    "sphere": (SPHERE, (0.42, 0.42, 0.42)),
    "cube": (CUBE, (0.26, 0.26, 0.26)),
    "cone": (CONE, (0.29, 0.29, 0.34)),
    "cylinder": (CYLINDER, (0.26, 0.26, 0.34)),
}
SIZES: dict[str, float] = {"small": 0.62, "medium": 0.80, "large": 1.0}

_OBJECT_STREAM, _ORDER_STREAM = 1, 2  # keep the random streams of one seed apart


@dataclass(frozen=True)
class SyntheticConfig:
    """What the generator may make. Angles in degrees, lengths in units of the object's unit box."""

    shapes: tuple[str, ...] = tuple(SHAPES)
    colours: tuple[str, ...] = tuple(COLOURS)
    sizes: tuple[str, ...] = tuple(SIZES)
    size_jitter: float = 0.06  # an object is up to this share smaller than its size says
    distance_range: tuple[float, float] = (1.4, 1.5)
    layout: ViewLayout = GOBJAVERSE_LAYOUT

    def __post_init__(self) -> None:
        for field, known in (("shapes", SHAPES), ("colours", COLOURS), ("sizes", SIZES)):
            values = getattr(self, field)
            if not values or not set(values) <= set(known):
                raise ValueError(f"{field} = {values} must name at least one of {tuple(known)} and nothing else")


DEFAULT_CONFIG = SyntheticConfig()


@dataclass(frozen=True)
class SyntheticObject:
    """One procedural object with its camera rig; z-up world."""

    uid: str
    words: ObjectWords
    primitives: tuple[Primitive, ...]
    camera_to_world_zup: NDArray[np.float64]  # [layout.count, 4, 4]

    def render(self, view_ids: Sequence[int], resolution: int) -> RawViews:
        """The given views of the layout as numbers."""
        return render_views(self.primitives, self.camera_to_world_zup[list(view_ids)], resolution)

    def render_packed(self, view_ids: Sequence[int], resolution: int) -> PackedViews:
        """The given views, quantised as a record stores them."""
        return pack_views(self.render(view_ids, resolution))

    def record(self, view_ids: Sequence[int], resolution: int) -> dict[str, bytes]:
        """The given views as an on-disk record."""
        return encode_record(self.uid, self.render_packed(view_ids, resolution), view_ids)

    @property
    def caption(self) -> str:
        """The plainest caption."""
        return plain_caption(self.words)


def synthetic_object(seed: int, index: int, config: SyntheticConfig = DEFAULT_CONFIG) -> SyntheticObject:
    """Object `index` of the endless series `seed`.

    Shape, colour and size are balanced: every block of as many objects as there are combinations holds each one once,
    in an order of its own.
    """
    combinations = [ObjectWords(s, c, z) for s in config.shapes for c in config.colours for z in config.sizes]
    block, place = divmod(index, len(combinations))
    order = np.random.default_rng([seed, _ORDER_STREAM, block]).permutation(len(combinations))
    words = combinations[order[place]]

    rng = np.random.default_rng([seed, _OBJECT_STREAM, index])
    shape, largest = SHAPES[words.shape]
    factor = SIZES[words.size] * (1.0 - config.size_jitter * rng.random())
    primitive = Primitive(
        shape=shape,
        scale=(largest[0] * factor, largest[1] * factor, largest[2] * factor),
        yaw_deg=float(rng.uniform(0.0, 360.0)),
        centre=(0.0, 0.0, 0.0),
        rgb=COLOURS[words.colour],
    )
    cameras = layout_cameras(config.layout, float(rng.uniform(*config.distance_range)), rng)
    return SyntheticObject(f"synthetic-{seed}-{index:07}", words, (primitive,), cameras)


def layout_cameras(layout: ViewLayout, distance: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Cameras of every view of a layout, [layout.count, 4, 4], OpenCV axes, z-up world.

    Each ring has one elevation, drawn from its range, and starts at azimuth 0: the object's yaw is free already, and
    the light then stands the same way to every first view.
    """
    elevations = np.zeros(layout.count)
    azimuths = np.zeros(layout.count)
    for ring in layout.rings:
        views = slice(ring.first, ring.first + ring.count)
        elevations[views] = rng.uniform(*ring.elevation_range_deg)
        azimuths[views] = np.arange(ring.count) * (360.0 / ring.count)
    elevations[layout.top], elevations[layout.bottom] = 90.0, -90.0
    for view, original in layout.duplicate_of:
        elevations[view], azimuths[view] = elevations[original], azimuths[original]
    angles = [torch.from_numpy(values).float() for values in (elevations, azimuths, np.full(layout.count, distance))]
    return y_up_to_z_up(orbit_camera_to_world(*angles).double().numpy())
