"""Intervals of figures that come from pairs of runs."""

from collections.abc import Callable, Sequence

import numpy as np

SAMPLES = 2000


def interval(statistic: Callable[..., np.ndarray], *columns: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a statistic by a bootstrap over pairs.

    Args:
        statistic: takes samples [SAMPLES, pairs] of every column and gives [SAMPLES] values.
        columns: what the pairs gave, each [pairs].
    """
    values = [np.array(column) for column in columns]
    picks = np.random.default_rng(0).integers(0, len(values[0]), (SAMPLES, len(values[0])))
    low, high = np.quantile(statistic(*(column[picks] for column in values)), [0.025, 0.975])
    return float(low), float(high)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the median of all pairs."""
    return interval(lambda samples: np.median(samples, axis=1), values)


def ratio_interval(over: Sequence[float], under: Sequence[float]) -> tuple[float, float]:
    """Of the ratio of two medians."""
    return interval(lambda a, b: np.median(a, axis=1) / np.median(b, axis=1), over, under)
