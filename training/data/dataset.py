"""A source's objects as samples: which views are shown, and the tensors made from them."""

from typing import Literal

import numpy as np

from diffsplat.geometry.cameras import PixelRule
from training.data.checks import check_aim
from training.data.record import BrokenRecord, unpack_views
from training.data.sample import Sample, build_sample
from training.data.source import ObjectSource
from training.data.views import fill_views, pick_even, pick_random


class Dataset:
    """Samples of a source's objects, at random access.

    Args:
        source: The objects.
        num_input_views: Views at equal azimuth steps on one ring, in front of every sample.
        num_views: Views of a sample in all.
        first_views: Reference views allowed, each on a ring of the layout; one is drawn per sample, by its ring's
            probability, and the views of their rings' picks are never novel ones while the object has others. Empty:
            every view of every ring.
        pixel_rule: Grid of the unprojection.
        published_side: Side to which full-size views are resized as published (`sample.build_sample`).
        picking: "even" as described; "random" draws all views of a sample at random, poles excepted (ElevEst).

        targets: The same objects at another size; samples then have `Sample.targets`.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        source: ObjectSource,
        *,
        num_input_views: int = 4,
        num_views: int = 8,
        first_views: tuple[int, ...] = (),
        pixel_rule: PixelRule = "pixel_centers",
        picking: Literal["even", "random"] = "even",
        published_side: int | None = None,
        targets: ObjectSource | None = None,
    ) -> None:
        if not 1 <= num_input_views <= num_views:
            raise ValueError(f"num_input_views = {num_input_views} must lie in [1, num_views = {num_views}]")
        self.source = source
        self.num_input_views = num_input_views
        self.num_views = num_views
        self.pixel_rule: PixelRule = pixel_rule
        self._picking = picking
        self._published_side = published_side
        self._targets = targets
        layout = source.layout
        self._input_views = []
        weights = []
        for first in first_views:
            try:
                ring = layout.ring_of(first)
            except ValueError as error:
                raise ValueError(f"first_views = {first_views}: {error}; none allows every ring's views") from error
            self._input_views.append(ring.even_views(first - ring.first, num_input_views))
            weights.append(ring.probability)
        self._weights = np.array(weights)
        self._always = frozenset(view for views in self._input_views for view in views)

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int, rng: np.random.Generator, first_view: int | None = None) -> Sample:
        """Object `index` with reference view, novel views and caption drawn from `rng`.

        Args:
            index: Of the object.
            rng: Of all draws.
            first_view: The reference view, if it is not to be drawn; not for random picking.

        Raises:
            BrokenRecord: the object cannot be read or lacks views.
        """
        usable = self.source.usable_views(index)
        layout = self.source.layout
        try:
            if self._picking == "random":
                picked = pick_random(layout, self.num_views, usable, rng, exclude_poles=True)
            else:
                inputs = self._draw_inputs(usable, rng) if first_view is None else self._inputs_from(first_view)
                others = [view for view in usable if view not in self._always]
                enough = len(others) >= self.num_views - len(inputs)
                picked = fill_views(layout, inputs, self.num_views, others if enough else usable, rng)
        except ValueError as error:
            raise BrokenRecord(f"{self.source.uid(index)}: {error}") from error
        sample = self._build(self.source, index, picked, self.source.caption(index, rng))
        if self._targets is None:
            return sample
        return sample._replace(targets=self._build(self._targets, index, picked, sample.caption))

    def seen_from(self, index: int, first_view: int) -> Sample:
        """Object `index` by its input views from `first_view` on, with its plainest caption.

        Raises:
            BrokenRecord: the object cannot be read or lacks views.
        """
        picked = self._inputs_from(first_view)
        missing = sorted(set(picked) - set(self.source.usable_views(index)))
        if missing:
            raise BrokenRecord(f"{self.source.uid(index)}: views {missing} are missing")
        return self._build(self.source, index, picked, self.source.caption(index, None))

    def _inputs_from(self, first_view: int) -> tuple[int, ...]:
        ring = self.source.layout.ring_of(first_view)
        return ring.even_views(first_view - ring.first, self.num_input_views)

    def _draw_inputs(self, usable: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
        if not self._input_views:
            return pick_even(self.source.layout, self.num_input_views, usable, rng)
        whole = [row for row, views in enumerate(self._input_views) if set(views) <= set(usable)]
        if not whole:
            raise ValueError(f"none of the reference views' picks {self._input_views} is complete")
        weights = self._weights[whole]
        return self._input_views[whole[rng.choice(len(whole), p=weights / weights.sum())]]

    def _build(self, source: ObjectSource, index: int, picked: tuple[int, ...], caption: str) -> Sample:
        packed = source.views(index, picked)
        uid = source.uid(index)
        try:
            check_aim(packed.camera_to_world_zup)
            views = unpack_views(packed)
            return build_sample(views, caption, uid, self.pixel_rule, self._published_side)
        except ValueError as error:
            raise BrokenRecord(f"{uid}: {error}") from error
