"""The procedural data set in memory: every view that training can use is rendered once, at record precision.

Only a few reference views are allowed (by default the start of the 24-ring), and the target views beyond the input
views come from a small pool drawn once per object, so the cache stays small: 12 bytes per pixel and view.
"""

import numpy as np

from diffsplat.geometry.cameras import PixelRule
from training.data.procedural.captions import draw_caption
from training.data.procedural.synthetic import DEFAULT_CONFIG, SyntheticConfig, SyntheticObject, synthetic_object
from training.data.record import PackedViews, unpack_views
from training.data.sample import Sample, build_sample
from training.data.views import fill_views

_POOL_STREAM = 11


class ProceduralDataset:
    """Objects `first_index .. first_index + count - 1` of a seed, rendered at construction.

    Args:
        seed: Series of objects.
        count: Number of objects, at least 1.
        resolution: Image side in pixels.
        num_input_views: Views at equal azimuth steps on one ring, in front of every sample.
        num_views: Views of a sample in all.
        first_views: Reference views allowed, each on a ring. One is drawn per sample, by its ring's probability.
        pool_size: Extra views rendered per object, from which the other ``num_views - num_input_views`` are drawn.
        pixel_rule: Grid of the unprojection.
        first_index: First object of the series; disjoint ranges give disjoint training and validation sets.
        config: What the generator may make.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        resolution: int,
        *,
        num_input_views: int = 4,
        num_views: int = 8,
        first_views: tuple[int, ...] = (0,),
        pool_size: int = 4,
        pixel_rule: PixelRule = "pixel_centers",
        first_index: int = 0,
        config: SyntheticConfig = DEFAULT_CONFIG,
    ) -> None:
        if count < 1:
            raise ValueError(f"count = {count} must be at least 1")
        if not first_views:
            raise ValueError("first_views is empty; at least one reference view is needed")
        if not 1 <= num_input_views <= num_views:
            raise ValueError(f"num_input_views = {num_input_views} must lie in [1, num_views = {num_views}]")
        if pool_size < num_views - num_input_views:
            raise ValueError(f"pool_size = {pool_size} must be at least num_views - num_input_views")
        self.seed = seed
        self.resolution = resolution
        self.num_views = num_views
        self.pixel_rule: PixelRule = pixel_rule
        layout = config.layout
        self._input_views = []
        weights = []
        for first in first_views:
            ring = layout.ring_of(first)
            self._input_views.append(ring.even_views(first - ring.first, num_input_views))
            weights.append(ring.probability)
        self._first_view_weights = np.array(weights) / sum(weights)
        self._always = tuple(dict.fromkeys(view for views in self._input_views for view in views))

        self.objects: list[SyntheticObject] = []
        self._view_ids: list[tuple[int, ...]] = []  # what is rendered of each object, in the order of its rows
        self._packed: list[PackedViews] = []
        for index in range(first_index, first_index + count):
            made = synthetic_object(seed, index, config)
            rng = np.random.default_rng([seed, _POOL_STREAM, index])
            view_ids = fill_views(layout, self._always, len(self._always) + pool_size, range(layout.count), rng)
            self.objects.append(made)
            self._view_ids.append(view_ids)
            self._packed.append(made.render_packed(view_ids, resolution))

    def __len__(self) -> int:
        return len(self.objects)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Object `index` with first view, target views and caption drawn from `rng`."""
        inputs = self._input_views[rng.choice(len(self._input_views), p=self._first_view_weights)]
        pool_rows = range(len(self._always), len(self._view_ids[index]))
        targets = rng.permutation(np.array(pool_rows))[: self.num_views - len(inputs)]
        rows = [self._always.index(view) for view in inputs] + [int(row) for row in targets]
        views = unpack_views(self._packed[index].select(rows))
        made = self.objects[index]
        return build_sample(views, draw_caption(made.words, rng), made.uid, self.pixel_rule)
