"""Optimisation profiles of a graph: the ranges of its free axes that an engine is built for.

    axis      of which graphs                   ranges
    rows      a step: denoiser, ControlNet      1 .. 2, 3 .. 4, 5 .. 8 ... up to two rows per request
    rows      once per request                  1 .. 4, best at the two of a guided request
    objects   decoder, encoders of images       1 .. 4, best at one
    tokens    all                               1 .. the longest text
    steps     modulations of a schedule         1 .. the longest schedule

One profile for each range of rows, so that small batches get kernels of their own: a batch that was padded to a bucket
(`denoisers/buckets.py`) is the best shape of its profile. Latents are fixed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from diffsplat.backends.engine_file import Profile, ShapeRange
from export.graph_spec import GraphSpec, TensorAxes

FEW = 4  # rows or objects of graphs that run once per request; an export compares graphs at up to three
TRIMMED_TOKENS = 32  # tokens of a short prompt, for graphs that leave masked tokens out


@dataclass(frozen=True)
class Limits:
    """What a service asks of its engines.

    Attributes:
        max_batch: requests that make a step together, as `max_batch` of `denoise/config.pbtxt`.
        steps: usual length of a schedule.
        first_rows: largest batch of a step's first profile; every further profile doubles it.
    """

    max_batch: int = 4
    steps: int = 20
    first_rows: int = 2

    def __post_init__(self) -> None:
        """Refuse an empty range."""
        if min(self.max_batch, self.steps, self.first_rows) < 1:
            raise ValueError(f"{self}: all must be 1 or more")


def is_step(graph: GraphSpec) -> bool:
    """Whether the graph runs at every step of a batch of requests, not once per request."""
    return graph.batch_axis == "rows" and any(tensor.name == "latents" for tensor in graph.inputs)


def profiles(graph: GraphSpec, limits: Limits) -> tuple[Profile, ...]:
    """The optimisation profiles of a graph, from the smallest batch to the largest; together they leave no gap."""
    others = {axis: _range(graph, axis, limits) for axis in graph.serving_sizes if axis != graph.batch_axis}
    return tuple(
        {tensor.name: _shapes(tensor, {graph.batch_axis: batch, **others}) for tensor in graph.inputs}
        for batch in _batches(graph, limits)
    )


def _batches(graph: GraphSpec, limits: Limits) -> list[tuple[int, int, int]]:
    if not is_step(graph):
        return [(1, graph.serving_sizes[graph.batch_axis], FEW)]
    last = max(2 * limits.max_batch, FEW)
    ranges, low, high = [], 1, limits.first_rows
    while low <= last:
        high = min(high, last)
        ranges.append((low, high, high))
        low, high = high + 1, 2 * high
    return ranges


def _range(graph: GraphSpec, axis: str, limits: Limits) -> tuple[int, int, int]:
    """Smallest, best and largest size of an axis that is not the batch."""
    if axis == "steps":
        return 1, min(limits.steps, graph.timestep_range), graph.timestep_range
    assert axis == "tokens", axis
    largest = graph.serving_sizes[axis]
    trimmed = any(tensor.name == "kept" for tensor in graph.inputs)
    return 1, min(TRIMMED_TOKENS, largest) if trimmed else largest, largest


def _shapes(tensor: TensorAxes, ranges: Mapping[str, tuple[int, int, int]]) -> ShapeRange:
    smallest, best, largest = (
        tuple(axis if isinstance(axis, int) else ranges[axis][i] for axis in tensor.axes) for i in range(3)
    )
    return ShapeRange(smallest, best, largest)
