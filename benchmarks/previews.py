"""What previews of one request cost another one, on a real denoiser in this process.

    python -m benchmarks.previews bundles/pico [--pairs 20] [--every 5] [--steps 20] [--json PATH]

Two requests are sent at once. One of twice as many steps asks for previews or does not, in interleaved pairs whose
order alternates; the time of the other one, which asks for none, is compared. Printed: the median ratio of all pairs
with a 95 % interval by bootstrap, and how many previews were made of those that were due. Exits with 1 if the ratio
misses its bar.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.engine_policy import POLICY, Bench, Row, send
from benchmarks.ensemble_overhead import find_repository
from benchmarks.machine import describe_machine

if TYPE_CHECKING:
    from diffsplat.stages.work import DenoiseWork

MOST_ADDED = 1.1


class Beside(NamedTuple):
    """A request beside one that may show previews."""

    seconds: float
    made: int
    due: int


def run_beside(bench: Bench, showing: "DenoiseWork", other: "DenoiseWork", preview_every: int) -> Beside:
    """Both at once; the time of the other one, and the previews of both times."""
    engine = bench.start(POLICY)
    try:
        (shows,) = send(engine, [showing], preview_every)
        (asks_none,) = send(engine, [other])
        seconds = asks_none.wait().ended_s
        last = shows.wait().last
        return Beside(seconds, last.previews, last.previews + last.previews_skipped)
    finally:
        engine.close()


def main() -> int:
    """Measure, print, and write as JSON when asked; 1 when the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.previews", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="BUNDLE_OR_REPOSITORY")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--every", type=int, default=5, help="steps between two previews")
    parser.add_argument("--steps", type=int, default=20, help="of the request that asks for none")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    bench = Bench(find_repository(args.path))
    (other,), (showing,) = bench.works(args.steps, 1), bench.works(2 * args.steps, 1)
    ratios, made, due = [], 0, 0
    for pair in range(-1, args.pairs):
        order = sorted((0, args.every), reverse=pair % 2 == 1)
        found = {every: run_beside(bench, showing, other, every) for every in order}
        if pair >= 0:  # the first one is a warm-up
            ratios.append(found[args.every].seconds / found[0].seconds)
            made, due = made + found[args.every].made, due + found[args.every].due
    print(f"previews every {args.every} steps: {made} of {due} made")
    row = Row(f"{args.steps} steps beside previews every {args.every}: time / without", ratios, MOST_ADDED)
    print(row)
    if args.json:
        about = {"steps": args.steps, "preview_every": args.every, "previews_made": made, "previews_due": due}
        figures = {"median": row.median, "interval": row.interval, "ratios": ratios, "bar": row.bar}
        record = {**describe_machine(), "path": str(args.path), **about, **figures}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(not row.reached)


if __name__ == "__main__":
    sys.exit(main())
