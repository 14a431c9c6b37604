"""`python -m benchmarks [NAME ...]`: run every benchmark, or those named, and keep their figures for this machine.

Figures and the versions they were measured with are written to `benchmarks/results/<machine>/<name>.json`, those that
are the same on every machine to `benchmarks/results/<name>.json`. `python -m benchmarks readme [--write]` compares the
README's figures with them, or pastes them; `python -m benchmarks guard` measures ratios anew and compares them.
"""

import argparse
import sys

from benchmarks import guard, readme
from benchmarks.machine import machine_name
from benchmarks.runs import BENCHMARKS, EVERYWHERE, RESULTS, run


def main() -> int:
    """Run benchmarks one after the other and return how many failed, or check the README or ratios."""
    commands = {"readme": readme.main, "guard": guard.main}
    if sys.argv[1:2] and sys.argv[1] in commands:
        return commands[sys.argv[1]](sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)} (default: all); or: readme, guard"
    )
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    folder = RESULTS / machine_name()
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number, name in enumerate(names, start=1):
        print(f"\n=== {number} of {len(names)}: {name}", flush=True)
        failed += run(name, (RESULTS if name in EVERYWHERE else folder) / f"{name}.json") != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
