"""The service under load: perf_analyzer drives the ensemble in closed loop and in open loop (Poisson).

    python -m benchmarks.load bundles/pico [--requests 60] [--steps 20] [--json PATH] [--plot PATH]
    python -m benchmarks.load --url HOST:PORT              a server that runs already, here or elsewhere

Without `--url` it starts `diffsplat serve`, edge included, in a process of its own. First one request at a time: the
standalone time. Then 2, 4, 8 and 16 at all times; the highest throughput of these is saturation. Then requests that
arrive at random (Poisson) at shares of it. Printed are percentiles of the time to the first progress and to the whole
object, both from the time stamps of perf_analyzer's profile export, and p95 as a multiple of the standalone median.
docs/benchmarks.md explains how to read and repeat them.
"""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.edge_overhead import serve
from benchmarks.ensemble_overhead import find_repository
from benchmarks.load_levels import PERCENTILES, Level, standalone_s, summarise
from benchmarks.load_plot import draw
from benchmarks.machine import describe_machine
from benchmarks.perf_analyzer import Load, run, write_inputs

PROMPTS = ("a red cube", "a blue sphere", "a green cone", "a yellow torus")
CONCURRENCIES = (1, 2, 4, 8, 16)
SHARES = (0.5, 0.8, 0.95)  # of saturation
BARS = {0.5: 4.0, 0.8: 8.0}  # share of saturation -> p95 over the standalone time, at most
WARM_UP = 8
TIMEOUT_S = 3600.0


def measure(
    url: str, *, requests: int, steps: int, concurrencies: tuple[int, ...], shares: tuple[float, ...]
) -> list[Level]:
    """All levels, one after the other, each printed as it is measured."""
    levels: list[Level] = []
    with TemporaryDirectory(prefix="diffsplat-load-") as name:
        inputs = Path(name) / "inputs.json"
        write_inputs(inputs, PROMPTS, steps)

        def level(load: Load, count: int = requests) -> Level:
            count = max(count, load.concurrency or 1)  # perf_analyzer takes no fewer
            export = Path(name) / f"{len(levels)}.json"
            times = run(url, load, requests=count, inputs=inputs, export=export, timeout_s=TIMEOUT_S)
            export.unlink()
            return summarise(load, times)

        level(Load(concurrency=concurrencies[-1]), WARM_UP)
        print(_row("load", "n", "req/s", "first p50", "p95", "p99", "object p50", "p95", "p99", "x alone"))
        for concurrency in concurrencies:
            levels.append(level(Load(concurrency=concurrency)))
            _print_level(levels)
        saturation_hz = max(one.throughput_hz for one in levels)
        for share in shares:
            levels.append(level(Load(rate_hz=share * saturation_hz)))
            _print_level(levels)
    return levels


def _print_level(levels: list[Level]) -> None:
    one = levels[-1]
    figures = [f"{1e3 * times[percent]:.0f}" for times in (one.first_s, one.total_s) for percent in PERCENTILES]
    multiple = one.total_s[95] / standalone_s(levels)
    print(_row(one.name, str(one.requests), f"{one.throughput_hz:.2f}", *figures, f"{multiple:.2f}"), flush=True)


def _row(name: str, *cells: str) -> str:
    return f"{name:14}" + "".join(f"{cell:>11}" for cell in cells)


class Multiple(NamedTuple):
    """The p95 of a level over the standalone time."""

    name: str
    ratio: float
    bar: float | None = None  # at most

    @property
    def missed(self) -> bool:
        """Whether it is above its bar."""
        return self.bar is not None and self.ratio > self.bar

    def __str__(self) -> str:
        """A line about a bar."""
        return f"p95 at {self.name} is {self.ratio:.1f} x standalone; at most {self.bar:g} wanted"


def multiples(levels: list[Level], shares: tuple[float, ...]) -> list[Multiple]:
    """Of every level; those of the open loop are named by their shares."""
    alone_s = standalone_s(levels)
    closed = [one for one in levels if one.load.rate_hz is None]
    opened = [one for one in levels if one.load.rate_hz is not None]
    found = [Multiple(one.name, one.total_s[95] / alone_s) for one in closed]
    for share, one in zip(shares, opened, strict=True):
        found.append(Multiple(f"{share:.0%} of saturation", one.total_s[95] / alone_s, BARS.get(share)))
    return found


def main() -> int:
    """Measure, print, and write JSON and plot when asked; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, nargs="?", metavar="BUNDLE_OR_REPOSITORY")
    parser.add_argument("--url", help="HOST:PORT of a server that runs already")
    parser.add_argument("--requests", type=int, default=60, help="of each level (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="of each request (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=list(CONCURRENCIES), help="starts with 1")
    parser.add_argument(
        "--shares", type=float, nargs="*", default=list(SHARES), help="of saturation, for the open loop"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--plot", type=Path, help=".svg or .png to draw (default: beside the JSON)")
    args = parser.parse_args()
    if (args.path is None) == (args.url is None):
        parser.error("name a bundle or repository, or a server with --url")
    if args.concurrency[0] != 1 or args.requests < 1:
        parser.error("--concurrency must start with 1, the standalone time, and --requests be at least 1")

    busy_before = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        url = args.url or stack.enter_context(serve(find_repository(args.path))).edge_url
        shares = tuple(args.shares)
        levels = measure(
            url, requests=args.requests, steps=args.steps, concurrencies=tuple(args.concurrency), shares=shares
        )
    found = multiples(levels, shares)
    missed = [str(one) for one in found if one.missed]
    print("\n".join(missed or ["every bar is reached"]))
    if args.json:
        record: dict[str, Any] = {**describe_machine(), "server": args.url or str(args.path), "steps": args.steps}
        record |= {"load_average_before": busy_before, "standalone_s": standalone_s(levels), "missed": missed}
        record["multiples"] = [one._asdict() for one in found]
        record["levels"] = [{**one._asdict(), "load": one.load._asdict()} for one in levels]
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    plot = args.plot or (args.json and args.json.with_suffix(".svg"))
    if plot:
        draw(levels, plot)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
