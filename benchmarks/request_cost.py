"""What a request costs, by its options: time, work of every process, bytes of the answer.

    python -m benchmarks.request_cost bundles/pico [--requests 10] [--json PATH]

`diffsplat serve` runs in a process of its own, edge included; requests come one after the other from this one. Every
row is a request of one prompt with one option changed, and takes turns with the request without it. Printed are the
median time, its median ratio to the other one's, the mean CPU time in the client, the edge, tritonserver and each
stage, and the bytes of splats or file, and frames.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diffsplat_client.client import Client
from diffsplat_client.poses import turntable
from diffsplat_client.request import GenerationRequest

from benchmarks.bootstrap import median_interval
from benchmarks.edge_overhead import serve
from benchmarks.ensemble_overhead import find_repository
from benchmarks.footprint import server_processes
from benchmarks.machine import describe_machine
from diffsplat.serving.server.processes import cpu_seconds

if TYPE_CHECKING:
    from diffsplat_client.generation import Generation

TIMEOUT_S = 600.0
BASE = GenerationRequest("a red cube", seed=1, steps=4)
WARM_UP = 2


def cases() -> dict[str, dict[str, Any]]:
    """Name -> options that differ from `BASE`."""
    frames = {f"{count} frames of 256 px": {"frame_poses": turntable(count)} for count in (1, 4, 16)}
    return {
        "4 steps": {},
        **{f"{steps} steps": {"steps": steps} for steps in (1, 16, 64)},
        "guidance 1": {"guidance_scale": 1.0},
        **frames,
        "4 frames of 512 px": {"frame_poses": turntable(4), "frame_size": 512},
        **{f"format {name}": {"formats": (name,)} for name in ("ply", "splat", "spz", "glb", "usdz", "sog")},
    }


class Cost(NamedTuple):
    """Of one request."""

    seconds: float
    over_base: float | None  # its ratio to the time of `BASE`; None for that itself
    interval: tuple[float, float] | None  # 95 % of that ratio
    cpu_s: dict[str, float]  # process or stage -> of one core
    answer_bytes: int


def measure(client: Client, launcher: int, options: dict[str, Any], requests: int) -> Cost:
    """Medians over some requests; CPU time is their mean, since the kernel counts it in hundredths."""
    for _ in range(WARM_UP):
        result = client.generate(BASE, **options)
    seconds: list[float] = []
    base_seconds: list[float] = []
    used: dict[str, float] = {}
    for _ in range(requests):
        if options:
            base_seconds.append(_timed(client, {})[0])
        before = _cpu(launcher)
        taken_s, result = _timed(client, options)
        seconds.append(taken_s)
        for name, after in _cpu(launcher).items():
            used[name] = used.get(name, 0.0) + (after - before.get(name, 0.0)) / requests
    ratios = [own / base for own, base in zip(seconds, base_seconds, strict=bool(options))]
    splats = sum(map(len, result.assets.values())) or result.cloud.to_array().nbytes
    frames = 0 if result.frames is None else result.frames.nbytes
    return Cost(
        statistics.median(seconds),
        statistics.median(ratios) if ratios else None,
        median_interval(ratios) if ratios else None,
        used,
        splats + frames,
    )


def _timed(client: Client, options: dict[str, Any]) -> "tuple[float, Generation]":
    began_s = time.perf_counter()
    result = client.generate(BASE, **options)
    return time.perf_counter() - began_s, result


def _cpu(launcher: int) -> dict[str, float]:
    """Seconds so far of this process, the edge's, tritonserver and the stages."""
    used = {"client": sum(os.times()[:2]), "edge": cpu_seconds(launcher) or 0.0}
    for pid, name in server_processes(launcher).items():
        used[name] = used.get(name, 0.0) + (cpu_seconds(pid) or 0.0)
    return used


def main() -> int:
    """Measure, print, and write as JSON when asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.request_cost", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="BUNDLE_OR_REPOSITORY")
    parser.add_argument("--requests", type=int, default=10, help="of each row (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    rows: dict[str, Cost] = {}
    with serve(find_repository(args.path)) as service, Client(service.edge_url, timeout_s=TIMEOUT_S) as client:
        for name, options in cases().items():
            rows[name] = measure(client, service.pid, options, args.requests)
            if len(rows) == 1:
                columns = list(rows[name].cpu_s)
                print(
                    f"{'':22}{'ms':>9}{'over base':>11}"
                    + "".join(f"{column:>13}" for column in columns)
                    + f"{'answer kB':>11}"
                )
            cost = rows[name]
            cpu = "".join(f"{1e3 * cost.cpu_s[column]:13.1f}" for column in columns)
            over = "" if cost.over_base is None else f"{cost.over_base:.2f}"
            print(f"{name:22}{1e3 * cost.seconds:9.1f}{over:>11}{cpu}{cost.answer_bytes / 1e3:11.1f}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {name: cost._asdict() for name, cost in rows.items()}
        record = {**describe_machine(), "path": str(args.path), "requests": args.requests, "rows": figures}
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
