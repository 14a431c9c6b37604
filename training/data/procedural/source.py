"""Procedural objects as a source; every view is rendered when it is asked for.

Only a few reference views are allowed (by default the start of the 24-ring), and novel views come from a small pool
drawn once per object, so that rendering all of them once is affordable (`training.data.rendered`).
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.procedural.captions import draw_caption, plain_caption
from training.data.procedural.synthetic import (
    DEFAULT_CONFIG,
    SyntheticConfig,
    SyntheticObject,
    object_uid,
    synthetic_object,
)
from training.data.record import PackedViews
from training.data.views import ViewLayout, fill_views

_POOL_STREAM = 11


class ProceduralSource:
    """Objects `first_index .. first_index + count - 1` of a seed.

    Args:
        seed: Series of objects.
        count: Number of objects, at least 1.
        resolution: Image side in pixels.
        num_input_views: Views at equal azimuth steps on one ring.
        first_views: Reference views, each on a ring.
        pool_size: Usable views per object beyond those of the reference views' picks.
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
        first_views: tuple[int, ...] = (0,),
        pool_size: int = 4,
        first_index: int = 0,
        config: SyntheticConfig = DEFAULT_CONFIG,
    ) -> None:
        if count < 1:
            raise ValueError(f"count = {count} must be at least 1")
        if not first_views:
            raise ValueError("first_views is empty; at least one reference view is needed")
        self.layout: ViewLayout = config.layout
        self.seed = seed
        self.count = count
        self.resolution = resolution
        self.first_index = first_index
        self.pool_size = pool_size
        self.config = config
        rings = [(self.layout.ring_of(first), first) for first in first_views]
        picks = [ring.even_views(first - ring.first, num_input_views) for ring, first in rings]
        self._always = tuple(dict.fromkeys(view for views in picks for view in views))
        self.made = functools.lru_cache(maxsize=256)(self._make)
        self._words = functools.cache(lambda index: self.made(index).words)

    def __len__(self) -> int:
        return self.count

    def provides(self) -> frozenset[str]:
        """Images, normals, depths, captions."""
        return frozenset({"rgb", "normal", "depth", "caption"})

    def prepare(self) -> None:
        """Nothing: views are rendered when they are asked for."""

    def uid(self, index: int) -> str:
        """Series and number of the object."""
        return object_uid(self.seed, self.first_index + index)

    def caption(self, index: int, rng: np.random.Generator | None) -> str:
        """A caption by the grammar."""
        words = self._words(index)
        return plain_caption(words) if rng is None else draw_caption(words, rng)

    def usable_views(self, index: int) -> tuple[int, ...]:
        """The views of the reference views' picks, then the object's pool."""
        rng = np.random.default_rng([self.seed, _POOL_STREAM, self.first_index + index])
        total = len(self._always) + self.pool_size
        return fill_views(self.layout, self._always, total, range(self.layout.count), rng)

    def views(self, index: int, view_ids: Sequence[int]) -> PackedViews:
        """Renders the views."""
        return self.made(index).render_packed(view_ids, self.resolution)

    def blocks(self) -> None:
        """Every object is as cheap alone."""

    def identity(self) -> dict[str, Any]:
        """The series, and which part of it."""
        facts: dict[str, Any] = {"kind": "procedural", "grammar": self.config.grammar}
        facts |= {"seed": self.seed, "objects": self.count}
        if self.config.grammar == "rich":
            facts |= {"colours": list(self.config.colours), "kind_weights": list(self.config.kind_weights)}
        return facts | ({"first_index": self.first_index} if self.first_index else {})

    def pixels_key(self) -> str:
        """Digest of all that decides the pixels of an object's views: series, resolution and the generator's code."""
        facts = [repr(self.config), self.seed, self.resolution, list(self._always), _code_digest()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _make(self, index: int) -> SyntheticObject:
        return synthetic_object(self.seed, self.first_index + index, self.config)


@functools.cache
def _code_digest() -> str:
    folder = Path(__file__).resolve().parent
    sources = [path.read_bytes() for path in sorted(folder.rglob("*.py"))]
    sources += [(folder.parent / name).read_bytes() for name in ("camera_chain.py", "record.py", "views.py")]
    return hashlib.sha256(b"".join(sources)).hexdigest()
