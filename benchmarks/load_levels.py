"""What one level of load came to."""

from typing import NamedTuple

import numpy as np

from benchmarks.perf_analyzer import Load, RequestTimes

PERCENTILES = (50, 95, 99)


class Level(NamedTuple):
    """One load and what came of it. Percentiles are in seconds."""

    load: Load
    requests: int
    throughput_hz: float
    first_s: dict[int, float]  # percentile -> time to the first progress
    total_s: dict[int, float]  # percentile -> time to the whole object

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"closed {self.load.concurrency}" if self.load.rate_hz is None else f"open {self.load.rate_hz:.2f}/s"


def summarise(load: Load, times: list[RequestTimes]) -> Level:
    """Percentiles, and requests per second from the first that was sent to the last that was answered."""
    first, total = (np.array([getattr(one, name) for one in times]) for name in ("first_s", "total_s"))
    span_s = max(one.sent_s + one.total_s for one in times) - min(one.sent_s for one in times)
    return Level(
        load,
        len(times),
        len(times) / span_s,
        *({percent: float(np.percentile(values, percent)) for percent in PERCENTILES} for values in (first, total)),
    )


def standalone_s(levels: list[Level]) -> float:
    """Median time of a request that has the server for itself."""
    return next(one.total_s[50] for one in levels if one.load.concurrency == 1)
