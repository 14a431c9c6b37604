"""What serving costs: the ensemble of a real server against the same stages in one process.

    python -m benchmarks.ensemble_overhead bundles/pico [--pairs 20] [--json PATH]

The same request (prompt to PLY and four views) goes to both, in interleaved pairs whose order alternates; both use the
same graphs, threads and waiting policy. Printed: medians, their ratio with a bootstrap interval, and the stages.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# as the launcher sets it for the server's processes; must be set before torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from diffsplat_client.client import Client
from diffsplat_client.poses import four_views
from diffsplat_client.request import GenerationRequest

from benchmarks.bootstrap import ratio_interval
from benchmarks.machine import describe_machine

if TYPE_CHECKING:
    from diffsplat_client.generation import Generation

    from diffsplat.pipeline import Pipeline, PipelineResult

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 3
MAX_RATIO = 1.10
MAX_SECONDS = 3.0
STAGES = ("encode", "queued", "denoise", "decode", "rasterize", "package")


def find_repository(path: Path) -> Path:
    """The exported repository itself, or that of a bundle, exported to `build/` unless it is up to date."""
    if not (path / "bundle.json").is_file():
        return path
    from export.repository import export_repository

    return export_repository(path, ROOT / "build" / path.name).folder


def measure(client: Client, pipeline: "Pipeline", pairs: int) -> dict[str, Any]:
    """Seconds of every run, and the stages' median milliseconds on both sides."""
    request = GenerationRequest("a red cube", seed=0, frame_poses=four_views(), formats=("ply",))
    seconds: dict[str, list[float]] = {"ensemble": [], "pipeline": []}
    stages: dict[str, list[dict[str, float]]] = {"ensemble": [], "pipeline": []}
    calls: dict[str, Callable[[GenerationRequest], Generation | PipelineResult]] = {
        "ensemble": client.generate,
        "pipeline": pipeline.generate,
    }
    for pair in range(-WARM_UP, pairs):
        for name in sorted(calls, reverse=pair % 2 == 1):
            started = time.perf_counter()
            result = calls[name](request)
            elapsed = time.perf_counter() - started
            if pair >= 0:
                seconds[name].append(elapsed)
                stages[name].append(dict(result.timings_ms))
    medians_ms = {
        side: {stage: statistics.median(times.get(stage, 0.0) for times in all_times) for stage in STAGES}
        for side, all_times in stages.items()
    }
    return {"seconds": seconds, "stages_ms": medians_ms}


def main() -> int:
    """Measure, print, and write as JSON when asked; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ensemble_overhead", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="BUNDLE_OR_REPOSITORY")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()

    from diffsplat.pipeline import Pipeline
    from diffsplat.serving.server.server import TritonServer

    repository = find_repository(args.path)
    pipeline = Pipeline.load(repository)
    pipeline.rasterize.warm_up()
    with TritonServer(repository) as server, Client(server.grpc_url) as client:
        figures = measure(client, pipeline, args.pairs)

    seconds = figures["seconds"]
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    ratio = medians["ensemble"] / medians["pipeline"]
    low, high = ratio_interval(seconds["ensemble"], seconds["pipeline"])
    print(f"prompt to PLY and 4 views, {pipeline.encode.spec.name}, {args.pairs} interleaved pairs")
    print(f"{'ms':10}" + "".join(f"{stage:>11}" for stage in (*STAGES, "rest", "total")))
    for side, stage_ms in figures["stages_ms"].items():
        total = medians[side] * 1e3
        row = [*stage_ms.values(), total - sum(stage_ms.values()), total]
        print(f"{side:10}" + "".join(f"{value:11.1f}" for value in row))
    print(f"ensemble / pipeline: {ratio:.3f} (95 %: {low:.3f} .. {high:.3f}; at most {MAX_RATIO:.2f} wanted)")
    print(f"ensemble: {medians['ensemble']:.3f} s (at most {MAX_SECONDS:g} s wanted)")
    if args.json:
        found = {"ratio": ratio, "interval": [low, high], "bar": MAX_RATIO, "median_s": medians}
        record = {**describe_machine(), **found, **figures}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(ratio > MAX_RATIO or medians["ensemble"] > MAX_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
