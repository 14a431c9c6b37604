"""Everything that waits for a GPU, in one command without network.

    python -m benchmarks.gpu --out DIR [--device cuda|cuda:N|cpu] [--minutes 10] [--tiny] [--only SECTION ...]

    tests        tests/gpu
    rasterizer   gsplat against the CPU kernels: errors, milliseconds per frame
    goldens      sampling runs of the published code in fp32, bf16 and fp16, against fp32 on the CPU
    stages       every graph of every full-size backbone, random weights: milliseconds, share of its roofline, memory
    end_to_end   prompt to splats, full size, stage by stage
    scaling      1 to 8 requests at once through the engine
    back_ends    the denoising step on every other back end that is installed: built, loaded, timed

Rows are on disk as soon as they are measured, see `rows.py`. `--device cpu --tiny` runs the same code in seconds with
very small networks; its figures mean nothing. docs/gpu.md says how to prepare a machine.
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.back_ends import back_ends
from benchmarks.gpu.checks import goldens, gpu_tests, rasterizer
from benchmarks.gpu.machine import describe
from benchmarks.gpu.requests import end_to_end, scaling
from benchmarks.gpu.rows import RESULTS, ROWS, TABLE, write_results
from benchmarks.gpu.runner import Outcome, Section, Settings, run_all
from benchmarks.gpu.stages import stages

SECTIONS = (
    Section("machine", describe, 2),
    Section("tests", gpu_tests, 10),
    Section("rasterizer", rasterizer, 5),
    Section("goldens", goldens, 10),
    Section("stages", stages, 25),
    Section("end_to_end", end_to_end, 15),
    Section("scaling", scaling, 10),
    Section("back_ends", back_ends, 25),
)


def main() -> int:
    """Measure; the exit code is 0 if every section ran to its end."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [section.name for section in SECTIONS[1:]]
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for everything (default: %(default)g)")
    parser.add_argument("--tiny", action="store_true", help="very small networks: to try the command itself")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help="some sections")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in (ROWS, RESULTS, TABLE):
        (args.out / name).unlink(missing_ok=True)
    settings = Settings(args.out, args.device, args.tiny)
    chosen = [section for section in SECTIONS if section.name in ("machine", *args.only)]
    started = time.monotonic()
    outcomes = run_all(chosen, settings, args.minutes * 60, lambda done: _keep(args.out, done))
    if outcomes[0].ended != "complete":
        print(f"error: {args.device}: {outcomes[0].ended}", file=sys.stderr)
    print(f"{args.out / TABLE}, {args.out / RESULTS}; {time.monotonic() - started:.0f} s")
    return int(any(outcome.ended != "complete" for outcome in outcomes))


def _keep(out: Path, outcomes: list[Outcome]) -> None:
    write_results(out, [asdict(outcome) for outcome in outcomes])


if __name__ == "__main__":
    sys.exit(main())
