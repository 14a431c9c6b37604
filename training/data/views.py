"""Choice of an object's recorded views: evenly spaced on a ring, random, and filled up to V.

The layout of the recorded views is data (`ViewLayout`), so that another camera rig needs a constant and no code.
Every draw takes an explicit numpy Generator. The first view picked is the reference view of the sample.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_REDRAWS = 100


@dataclass(frozen=True)
class Ring:
    """Views ``first .. first + count - 1``, evenly spaced in azimuth at one elevation (drawn from the range)."""

    first: int
    count: int
    elevation_range_deg: tuple[float, float]  # user sign: positive = above
    probability: float  # share of the even picks that use this ring

    def even_views(self, start: int, num_views: int) -> tuple[int, ...]:
        """`num_views` views of this ring at equal azimuth steps; `start` counts from the ring's first view."""
        if self.count % num_views:
            raise ValueError(f"num_views = {num_views} must divide the ring of {self.count} views")
        stride = self.count // num_views
        return tuple(self.first + (start + k * stride) % self.count for k in range(num_views))


@dataclass(frozen=True)
class ViewLayout:
    """A camera rig: rings, the two pole views, and views that repeat another one."""

    rings: tuple[Ring, ...]
    top: int | None
    bottom: int | None
    duplicate_of: tuple[tuple[int, int], ...]  # (view, the view it repeats)
    others: int = 0  # further views, the last ones

    @property
    def count(self) -> int:
        """Number of recorded views, repeated ones included."""
        return sum(ring.count for ring in self.rings) + len(self.poles) + len(self.duplicate_of) + self.others

    @property
    def ring_views(self) -> tuple[int, ...]:
        """The views of all rings: every possible reference view."""
        return tuple(view for ring in self.rings for view in range(ring.first, ring.first + ring.count))

    @property
    def duplicates(self) -> frozenset[int]:
        """Views that repeat another view."""
        return frozenset(view for view, _ in self.duplicate_of)

    @property
    def poles(self) -> frozenset[int]:
        """The views from straight above and straight below."""
        return frozenset(view for view in (self.top, self.bottom) if view is not None)

    def ring_of(self, view: int) -> Ring:
        """The ring that holds `view`."""
        for ring in self.rings:
            if ring.first <= view < ring.first + ring.count:
                return ring
        raise ValueError(f"view = {view} lies on no ring of the layout")


def layout_from_dict(facts: dict[str, Any]) -> ViewLayout:
    """The layout that `dataclasses.asdict` and JSON made these facts of.

    Raises:
        ValueError: they are not of a layout.
    """
    try:
        rings = tuple(Ring(r["first"], r["count"], tuple(r["elevation_range_deg"]), r["probability"])
                      for r in facts["rings"])  # fmt: skip
        copies = tuple((view, original) for view, original in facts["duplicate_of"])
        return ViewLayout(rings, facts["top"], facts["bottom"], copies, facts["others"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"is not a layout of views: {error!r}") from error


# GObjaverse: 24-ring, its start again, top, bottom, 12-ring, its start again: 38 distinct views in 40.
GOBJAVERSE_LAYOUT = ViewLayout(
    rings=(Ring(0, 24, (5.0, 30.0), 2 / 3), Ring(27, 12, (-5.0, 5.0), 1 / 3)),
    top=25,
    bottom=26,
    duplicate_of=((24, 0), (39, 27)),
)


def pick_even(
    layout: ViewLayout, num_views: int, available: Collection[int], rng: np.random.Generator
) -> tuple[int, ...]:
    """`num_views` views at equal azimuth steps on one ring, ring and start at random.

    Redraws while a drawn view is missing from the object.

    Raises:
        ValueError: no complete draw in `MAX_REDRAWS`, or `num_views` does not divide a ring.
    """
    present = frozenset(available)
    weights = np.array([ring.probability for ring in layout.rings])
    for _ in range(MAX_REDRAWS):
        ring = layout.rings[rng.choice(len(layout.rings), p=weights / weights.sum())]
        views = ring.even_views(int(rng.integers(ring.count)), num_views)
        if present.issuperset(views):
            return views
    raise ValueError(f"no {num_views} evenly spaced views among the object's {len(present)} views: {sorted(present)}")


def pick_random(
    layout: ViewLayout,
    num_views: int,
    available: Collection[int],
    rng: np.random.Generator,
    exclude_poles: bool = False,
) -> tuple[int, ...]:
    """`num_views` different views of all recorded ones (repeated ones count as different, as published).

    Raises:
        ValueError: the object has fewer usable views.
    """
    pool = sorted(frozenset(available) - (layout.poles if exclude_poles else frozenset()))
    if num_views > len(pool):
        raise ValueError(f"num_views = {num_views} exceeds the object's {len(pool)} usable views")
    return tuple(int(view) for view in rng.choice(pool, num_views, replace=False))


def fill_views(
    layout: ViewLayout,
    picked: tuple[int, ...],
    total: int,
    available: Sequence[int],
    rng: np.random.Generator,
    exclude_poles: bool = False,
) -> tuple[int, ...]:
    """`picked` followed by others, at random, up to `total`; distinct while the object has enough views.

    Args:
        layout: Camera rig; its duplicates are never used to fill.
        picked: Views taken already; they stay in front, in order.
        total: Length of the result.
        available: The object's usable views.
        rng: Source of the draw.
        exclude_poles: Leave out the top and bottom views.

    Raises:
        ValueError: `total` is smaller than the number picked.
    """
    if total < len(picked):
        raise ValueError(f"total = {total} must be at least the {len(picked)} views picked already")
    barred = frozenset(picked) | layout.duplicates | (layout.poles if exclude_poles else frozenset())
    pool = [view for view in available if view not in barred]
    missing = total - len(picked)
    chosen = [int(view) for view in rng.permutation(pool)[:missing]]
    while len(chosen) < missing:  # too few views recorded: repeat some rather than lose the object
        everything = (*picked, *chosen)
        chosen.append(int(everything[rng.integers(len(everything))]))
    return (*picked, *chosen)
