"""Time of writing and reading file formats: `python -m benchmarks.formats [--splats N] [--json PATH]`."""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats import FORMATS
from diffsplat_client.formats.any_file import read_splats, write_splats

from benchmarks.bootstrap import median_interval
from benchmarks.machine import describe_machine

SPLATS = 4 * 256 * 256  # one object of the full-size models
ROUNDS = 15


def random_cloud(count: int) -> SplatCloud:
    """Splats with the ranges of decoded ones; the opacity threshold keeps all of them."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=(count, 14)).astype(np.float32)
    array[:, 3:6] = rng.uniform(0, 1, (count, 3))
    array[:, 6] = rng.uniform(0.01, 1, count)
    array[:, 7:10] = rng.uniform(0.0005, 0.02, (count, 3))
    return SplatCloud.from_array(array)


def measure(count: int) -> dict[str, Any]:
    """Seconds and sizes for one cloud on this machine's temporary folder; every format once in each round."""
    cloud = random_cloud(count)
    writes: dict[str, list[float]] = {name: [] for name in FORMATS}
    reads: dict[str, list[float]] = {name: [] for name in FORMATS}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS + 1):  # the first one warms up
            for name, format in FORMATS.items():
                path = Path(folder) / format.file_name
                writes[name].append(seconds(partial(write_splats, path, cloud, format=name)))
                reads[name].append(seconds(partial(read_splats, path)))
                sizes[name] = path.stat().st_size
    over_ply = {
        name: [own / ply for own, ply in zip(writes[name][1:], writes["ply"][1:], strict=True)] for name in FORMATS
    }
    rows = {
        name: {
            "write_s": statistics.median(writes[name][1:]),
            "read_s": statistics.median(reads[name][1:]),
            "write_over_ply": statistics.median(over_ply[name]),
            "interval": median_interval(over_ply[name]),
            "bytes": sizes[name],
        }
        for name in FORMATS
    }
    ply = rows["ply"]
    totals = {"ply_write_s": ply["write_s"], "ply_read_s": ply["read_s"], "ply_bytes": ply["bytes"]}
    return {"splats": count, **totals, "formats": rows}


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print, and write as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splats", type=int, default=SPLATS)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    figures = measure(args.splats)
    print(f"{figures['splats']:,} splats, medians of {ROUNDS} rounds")
    print(f"{'format':<12} {'write s':>8} {'over ply':>9} {'read s':>8} {'bytes a splat':>14}")
    for name, row in figures["formats"].items():
        size = row["bytes"] / figures["splats"]
        print(f"{name:<12} {row['write_s']:>8.3f} {row['write_over_ply']:>9.2f} {row['read_s']:>8.3f} {size:>14.1f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**describe_machine(), **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
