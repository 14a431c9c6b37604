"""`python -m benchmarks guard [NAME ...] [--fresh FOLDER]`: has a ratio become worse than the one that is kept?

Runs the benchmarks named, or all that have ratios, and compares these with `benchmarks/results` for this kind of
machine, else for the most similar one. With `--fresh` it takes files NAME.json from a folder instead of running any.

A ratio has become worse if both hold:

    it is beyond its limit: 15 % worse than the kept one, or 25 % unless both have intervals; the benchmark's own bar is
    the limit where that is nearer and the kept one reaches it
    its interval does not overlap the kept one's (a ratio without an interval is a point)

Why these: runs of one kind of machine, all of them good, differed by up to 5 % in a ratio with intervals (the
ensemble's, six runs), and by up to 22 % in one without (two threads of the rasterizer, three runs). Kinds of machines
differ more, with the same code (blending is 5.8 times as fast as a scalar loop with AVX-512, 3.9 times with AVX2), so
that against another kind a bar alone is a limit.

Exits with 1 if a ratio has become worse, or if a benchmark did not write its figures or a ratio that it should have.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import machine_name
from benchmarks.ratios import RATIOS, FigureError, Json, Ratio, find
from benchmarks.runs import RESULTS, run

TOLERANCE, TOLERANCE_OF_POINTS = 0.15, 0.25
WORSE, MISSING = "WORSE", "MISSING in the file"


class Verdict(NamedTuple):
    """A line of the table."""

    name: str
    kept: Ratio | None
    fresh: Ratio | None
    limit: float | None
    words: str


def judge(name: str, kept: Ratio | None, fresh: Ratio | None, same_kind: bool = True) -> Verdict:
    """Compare two figures of which one may be missing; the bar is the fresh one's, which the code of today states.

    `same_kind`: whether both were measured on one kind of machine.
    """
    if kept is None or fresh is None:
        return Verdict(name, kept, fresh, None, "not kept yet" if kept is None else "not measured this time")
    share = TOLERANCE if kept.interval and fresh.interval else TOLERANCE_OF_POINTS
    limits = [kept.worsened(share)] if same_kind else []
    if fresh.bar is not None and not kept.beyond(fresh.bar):
        limits.append(fresh.bar)
    limit = (min if kept.at_most else max)(limits, default=None)
    words = "ok"
    if limit is not None and fresh.beyond(limit):
        words = WORSE if fresh.worse_than(kept) else "ok, the intervals overlap"
    elif not same_kind:
        words = "no limit from another kind of machine" if limit is None else "ok"
    elif kept.beyond(fresh.worsened(share)) and kept.worse_than(fresh):
        words = "better: keep it"
    if fresh.bar is not None and fresh.beyond(fresh.bar):
        words += f"; misses its bar of {fresh.bar:g}{', as before' if kept.beyond(fresh.bar) else ''}"
    return Verdict(name, kept, fresh, limit, words)


def compare(benchmark: str, kept: Json, fresh: Json, same_kind: bool = True) -> list[Verdict]:
    """Every ratio of either file, and the registered keys that the fresh one lacks; FigureError for a damaged file."""
    (kept_ratios, _), (fresh_ratios, absent) = find(benchmark, kept), find(benchmark, fresh)
    names = dict.fromkeys([*kept_ratios, *fresh_ratios])
    verdicts = [judge(name, kept_ratios.get(name), fresh_ratios.get(name), same_kind) for name in names]
    return verdicts + [Verdict(path, None, None, None, MISSING) for path in absent]


def nearest(machine: str, kept: Iterable[str]) -> str:
    """The kind of machine with the most words of this one's name in its own; "" without any."""
    words = set(machine.split("-"))
    ranked = sorted(kept, key=lambda other: (-len(words & {*other.split("-")}), len(other), other))
    return next(iter(ranked), "")


def main(arguments: list[str] | None = None, results: Path = RESULTS) -> int:
    """Measure or read, compare, print a table; 1 if a ratio has become worse or figures are missing altogether."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks guard", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(RATIOS)} (default: all)")
    parser.add_argument("--fresh", type=Path, metavar="FOLDER", help="of NAME.json files that were measured already")
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.names if name not in RATIOS]:
        parser.error(f"no ratios of {', '.join(unknown)}: choose from {', '.join(RATIOS)}")
    names = args.names or list(RATIOS)
    if args.fresh is not None and not args.names:
        names = [name for name in names if (args.fresh / f"{name}.json").is_file()]
        if not names:
            parser.error(f"--fresh: {args.fresh} holds none of {', '.join(f'{name}.json' for name in RATIOS)}")
    with tempfile.TemporaryDirectory() as temporary:
        failures = [_guard(name, args.fresh, Path(temporary), results) for name in names]
    if args.fresh is not None and (rest := [name for name in RATIOS if name not in names]):
        print(f"not compared: {', '.join(rest)}")
    return int(any(failures))


def _guard(name: str, given: Path | None, temporary: Path, results: Path) -> bool:
    """Whether one benchmark has become worse or gave no figures."""
    path = (given or temporary) / f"{name}.json"
    if given is None:
        run(name, path)  # its own exit code is about bars, which are judged here
    if not path.is_file():
        print(f"{name}: no figures: {path} was not written")
        return True
    try:
        fresh = json.loads(path.read_text())
        machine = _machine_of(fresh)
        kept_for = nearest(machine, (file.parent.name for file in results.glob(f"*/{name}.json")))
        kept = json.loads((results / kept_for / f"{name}.json").read_text()) if kept_for else {}
        verdicts = compare(name, kept, fresh, machine == kept_for)
    except (FigureError, json.JSONDecodeError) as error:
        print(f"{name}: {error}")
        return True
    kept_by = f"kept: {kept_for}" if kept_for else "nothing is kept on any machine"
    stands_in = ", none of this kind of machine" if kept_for not in ("", machine) else ""
    print(f"\n{name} on {machine}; {kept_by}{stands_in}")
    print(table(verdicts))
    return any(verdict.words.startswith((WORSE, MISSING)) for verdict in verdicts)


def _machine_of(figures: dict[str, Any]) -> str:
    """The kind of machine of a file; this one's for files that do not say."""
    machine = figures["machine"] if "machine" in figures else machine_name()
    return str(machine["machine"] if isinstance(machine, dict) else machine)


def table(verdicts: list[Verdict]) -> str:
    """One line each, under a head."""
    rows: list[tuple[str, ...]] = [("", "kept", "fresh", "", "limit", "")]
    for name, kept, fresh, limit, words in verdicts:
        interval = f"{fresh.interval[0]:.3f} .. {fresh.interval[1]:.3f}" if fresh and fresh.interval else ""
        sign = "" if fresh is None or limit is None else "<= " if fresh.at_most else ">= "
        values = [f"{one.value:.3f}" if one else "-" for one in (kept, fresh)]
        rows.append((name, *values, interval, "" if limit is None else f"{sign}{limit:.3f}", words))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = ("<", ">", ">", ">", ">", "<")
    lines = ("  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, aligns, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
