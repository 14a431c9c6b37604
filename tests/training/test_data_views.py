"""View pickers: shares, spacing, no duplicates, missing views."""

from collections import Counter

import numpy as np
import pytest

from training.data.views import GOBJAVERSE_LAYOUT as LAYOUT
from training.data.views import fill_views, pick_even, pick_random

ALL = range(40)


def test_layout_counts_forty_views_with_two_repeated():
    assert LAYOUT.count == 40
    covered = {view for ring in LAYOUT.rings for view in range(ring.first, ring.first + ring.count)}
    assert covered | LAYOUT.poles | LAYOUT.duplicates == set(ALL)
    with pytest.raises(ValueError, match="view = 25"):
        LAYOUT.ring_of(25)


def test_even_picks_share_the_rings_two_to_one_and_start_anywhere():
    rng = np.random.default_rng(0)
    draws = [pick_even(LAYOUT, 4, ALL, rng) for _ in range(6000)]
    first = Counter(views[0] for views in draws)
    wide = sum(first[view] for view in range(24))
    assert abs(wide / 6000 - 2 / 3) < 0.02  # three standard deviations
    assert set(first) == {*range(24), *range(27, 39)}
    for view, hits in first.items():
        share = (2 / 3 / 24) if view < 24 else (1 / 3 / 12)
        assert abs(hits / 6000 - share) < 0.009, view  # four standard deviations
    for views in draws:
        ring = LAYOUT.ring_of(views[0])
        steps = {(b - a) % ring.count for a, b in zip(views, views[1:] + views[:1], strict=True)}
        assert steps == {ring.count // 4}, "90 degrees apart, on one ring, in order of azimuth"


def test_fill_adds_distinct_views_and_never_the_repeated_ones():
    rng = np.random.default_rng(1)
    seen: Counter[int] = Counter()
    for _ in range(3000):
        views = fill_views(LAYOUT, (0, 6, 12, 18), 8, ALL, rng)
        assert views[:4] == (0, 6, 12, 18)
        assert len(set(views)) == 8
        assert not set(views) & {24, 39}
        seen.update(views[4:])
    assert set(seen) == set(ALL) - {0, 6, 12, 18, 24, 39}
    assert max(seen.values()) < 1.25 * min(seen.values()), "all others alike"
    for _ in range(50):
        assert not set(fill_views(LAYOUT, (0,), 30, ALL, rng, exclude_poles=True)) & {25, 26}


def test_random_picks_are_distinct():
    rng = np.random.default_rng(2)
    union = set()
    for _ in range(300):
        views = pick_random(LAYOUT, 4, ALL, rng, exclude_poles=True)
        assert len(set(views)) == 4
        union.update(views)
    assert union == set(ALL) - {25, 26}
    assert {25, 26} <= {v for _ in range(300) for v in pick_random(LAYOUT, 4, ALL, rng)}


def test_missing_views_are_avoided_or_reported():
    rng = np.random.default_rng(3)
    only = (2, 8, 14, 20, 30)
    for _ in range(5):
        assert sorted(pick_even(LAYOUT, 4, only, rng)) == [2, 8, 14, 20]
    with pytest.raises(ValueError, match="no 4 evenly spaced views"):
        pick_even(LAYOUT, 4, (0, 1, 2, 3), rng)
    with pytest.raises(ValueError, match="num_views = 5"):
        pick_even(LAYOUT, 5, ALL, rng)
    with pytest.raises(ValueError, match="num_views = 6"):
        pick_random(LAYOUT, 6, only, rng)
    with pytest.raises(ValueError, match="total = 3"):
        fill_views(LAYOUT, only[:4], 3, only, rng)
    repeated = fill_views(LAYOUT, only[:4], 8, only, rng)
    assert len(repeated) == 8 and set(repeated) == set(only)


def test_picks_are_a_function_of_the_generator():
    picks = [pick_even(LAYOUT, 4, ALL, np.random.default_rng(9)) for _ in range(2)]
    assert picks[0] == picks[1]
