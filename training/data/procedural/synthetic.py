"""Procedural objects: a pure function of (seed, index), rendered on demand, view by view.

A `SyntheticObject` holds its primitives, its words and the cameras of a 40-view layout; it renders any of these views
at any resolution, directly to arrays or through the record codec.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from diffsplat.geometry.cameras import orbit_camera_to_world
from training.data.camera_chain import y_up_to_z_up
from training.data.procedural.captions import caption_words, plain_caption
from training.data.procedural.grammar import vocabulary as rich_vocabulary
from training.data.procedural.object_words import ObjectWords
from training.data.procedural.palette import COLOURS
from training.data.procedural.render import render_views
from training.data.procedural.scenes import build_parts, draw_words
from training.data.procedural.shapes import Primitive
from training.data.procedural.solids import SHAPES, SIZES
from training.data.procedural.synthetic_config import DEFAULT_CONFIG, RICH_CONFIG, SyntheticConfig
from training.data.record import PackedViews, RawViews, encode_record, pack_views
from training.data.views import ViewLayout

__all__ = [
    "DEFAULT_CONFIG",
    "RICH_CONFIG",
    "SHAPES",
    "SIZES",
    "SyntheticConfig",
    "SyntheticObject",
    "build_object",
    "layout_cameras",
    "object_uid",
    "synthetic_object",
    "vocabulary",
]

_OBJECT_STREAM, _ORDER_STREAM, _WORDS_STREAM = 1, 2, 3  # keep the random streams of one seed apart


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


def object_uid(seed: int, index: int) -> str:
    """Id of object `index` of the series `seed`."""
    return f"synthetic-{seed}-{index:07}"


def synthetic_object(seed: int, index: int, config: SyntheticConfig = DEFAULT_CONFIG) -> SyntheticObject:
    """Object `index` of the endless series `seed`.

    With the basic grammar, shape, colour and size are balanced: every block of as many objects as there are
    combinations holds each one once, in an order of its own. With the rich one, all facts are drawn independently.
    """
    if config.grammar == "rich":
        words = draw_words(config, np.random.default_rng([seed, _WORDS_STREAM, index]))
        return build_object(words, seed, index, config)
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
    return SyntheticObject(object_uid(seed, index), words, (primitive,), cameras)


def build_object(words: ObjectWords, seed: int, index: int, config: SyntheticConfig = RICH_CONFIG) -> SyntheticObject:
    """The object that series `seed` would have at `index` if its facts were `words`, which may be held out.

    Raises:
        ValueError: the words do not belong to the rich grammar.
    """
    if words.grammar != "rich":
        raise ValueError(f"grammar = {words.grammar!r} of the words must be 'rich'")
    rng = np.random.default_rng([seed, _OBJECT_STREAM, index])
    parts = build_parts(words, config, rng)
    cameras = layout_cameras(config.layout, float(rng.uniform(*config.distance_range)), rng)
    return SyntheticObject(object_uid(seed, index), words, tuple(parts), cameras)


def vocabulary(config: SyntheticConfig) -> tuple[str, ...]:
    """Every word that captions of this configuration may use, sorted."""
    if config.grammar == "basic":
        return caption_words(config.shapes)
    return rich_vocabulary(config.shapes + config.composites, config.colours)


def layout_cameras(layout: ViewLayout, distance: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Cameras of every view of a layout, [layout.count, 4, 4], OpenCV axes, z-up world.

    Each ring has one elevation, drawn from its range, and starts at azimuth 0: the object's yaw is random already, and
    the light then comes from the same side in every first view.
    """
    elevations = np.zeros(layout.count)
    azimuths = np.zeros(layout.count)
    for ring in layout.rings:
        views = slice(ring.first, ring.first + ring.count)
        elevations[views] = rng.uniform(*ring.elevation_range_deg)
        azimuths[views] = np.arange(ring.count) * (360.0 / ring.count)
    for view, elevation in ((layout.top, 90.0), (layout.bottom, -90.0)):
        if view is not None:
            elevations[view] = elevation
    for view, original in layout.duplicate_of:
        elevations[view], azimuths[view] = elevations[original], azimuths[original]
    angles = [torch.from_numpy(values).float() for values in (elevations, azimuths, np.full(layout.count, distance))]
    return y_up_to_z_up(orbit_camera_to_world(*angles).double().numpy())
