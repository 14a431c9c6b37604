"""Which figures of the benchmarks are ratios of runs on one machine, and which way is better.

Ratios move far less than times between hours and machines, so that they can be guarded. What a benchmark writes beside
a ratio belongs to it: `interval` (95 %) and `bar`.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

Json = Mapping[str, Any]


class Key(NamedTuple):
    """Where the JSON of a benchmark has ratios."""

    path: str  # names of fields with dots between; those with "*" are patterns, and "*" is every element of a list too
    at_most: bool = True  # lower is better
    labels: tuple[str, ...] = ()  # fields beside the ratio that tell the elements of a list apart
    at_most_field: str = ""  # beside the ratio, where it says by itself which way is better


class Ratio(NamedTuple):
    """One figure."""

    name: str
    value: float
    at_most: bool  # lower is better
    interval: tuple[float, float] | None = None
    bar: float | None = None

    def beyond(self, limit: float) -> bool:
        """Whether it is worse than a limit."""
        return self.value > limit if self.at_most else self.value < limit

    def worsened(self, share: float) -> float:
        """The value that is worse by a share of it."""
        return self.value * (1 + share) if self.at_most else self.value / (1 + share)

    def worse_than(self, other: "Ratio") -> bool:
        """Whether the whole interval is worse than the other's; a figure without one is a point."""
        low, high = self.interval or (self.value, self.value)
        other_low, other_high = other.interval or (other.value, other.value)
        return low > other_high if self.at_most else high < other_low


class FigureError(ValueError):
    """A file that does not hold a registered ratio."""


# benchmark -> its ratios. Not here: times, sizes, and errors and qualities, which tests and `benchmarks.quality` hold.
RATIOS: dict[str, tuple[Key, ...]] = {
    "rasterizer": (Key("rows.*.ratio", at_most=False, labels=("name", "threads")),),
    "cpu_backends": (
        Key("rows.*.ratio", labels=("step", "candidate")),
        Key("best.*.ratio", labels=("name",)),
    ),
    "formats": (Key("formats.*.write_over_ply"),),
    "ensemble_overhead": (Key("ratio"),),
    "edge_overhead": (Key("ratio"),),
    "engine_policy": (Key("rows.*.median", labels=("name",), at_most_field="at_most"),),
    "previews": (Key("median"),),
    # not by steps: more of them cost relatively more when everything else has become faster
    "request_cost": tuple(Key(f"rows.{row}.over_base") for row in ("guidance 1", "* frames of *", "format *")),
    "load": (Key("multiples.*.ratio", labels=("name",)),),
    "import_memory": (Key("import_memory.ratio"),),
    "loader": (Key("least_ratio", at_most=False),),
}


def find(benchmark: str, figures: Json) -> tuple[dict[str, Ratio], list[str]]:
    """The ratios of a benchmark's JSON by their names, and the paths of keys that it has not.

    A key counts as had if one element holds it; elements without a value were not measured.

    Raises:
        FigureError: something else than a number is in a ratio's place.
    """
    found: dict[str, Ratio] = {}
    absent = []
    for key in RATIOS[benchmark]:
        *parents, field = key.path.split(".")
        holders = [(label, holder) for label, holder in _walk(figures, parents, key.labels) if field in holder]
        if not holders:
            absent.append(key.path)
        for label, holder in holders:
            if holder[field] is not None:
                name = ": ".join(filter(None, (label, field)))
                found[name] = _ratio(name, key, holder, field)
    return found, absent


def _walk(value: Any, path: list[str], labels: tuple[str, ...], name: str = "") -> Iterator[tuple[str, Json]]:
    """Objects at the end of a path, and what their elements are called."""
    if not path:
        if isinstance(value, Mapping):
            yield name, value
        return
    first, *rest = path
    if isinstance(value, Mapping):
        for key, element in value.items():
            if fnmatchcase(key, first):
                yield from _walk(element, rest, labels, key)
    elif isinstance(value, list) and first == "*":
        for element in value:
            yield from _walk(element, rest, labels, ", ".join(str(element.get(label)) for label in labels))


def _ratio(name: str, key: Key, holder: Json, field: str) -> Ratio:
    interval, bar, value = holder.get("interval"), holder.get("bar"), holder[field]
    numbers = [value, *(interval or ()), *(() if bar is None else (bar,))]
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
        raise FigureError(f"{name} = {value!r}, interval {interval!r}, bar {bar!r}: must be numbers")
    at_most = holder[key.at_most_field] if key.at_most_field else key.at_most
    return Ratio(name, value, at_most, None if interval is None else (interval[0], interval[1]), bar)
