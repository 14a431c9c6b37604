"""Time of writing and reading file formats: `python -m benchmarks.formats [--splats N] [--json PATH]`."""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.ply import read_ply, write_ply

SPLATS = 4 * 256 * 256  # one object of the full-size models
REPEATS = 15


def random_cloud(count: int) -> SplatCloud:
    """Splats with the ranges of decoded ones; the opacity threshold keeps all of them."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=(count, 14)).astype(np.float32)
    array[:, 3:6] = rng.uniform(0, 1, (count, 3))
    array[:, 6] = rng.uniform(0.01, 1, count)
    array[:, 7:10] = rng.uniform(0.0005, 0.02, (count, 3))
    return SplatCloud.from_array(array)


def median_s(call: Callable[[], object]) -> float:
    """Median wall-clock time of a call after one to warm up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(count: int) -> dict[str, float]:
    """Seconds and sizes for one cloud on this machine's temporary folder."""
    cloud = random_cloud(count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "splats.ply"
        write_s = median_s(lambda: write_ply(path, cloud))
        read_s = median_s(lambda: read_ply(path))
        size = path.stat().st_size
    return {"splats": count, "ply_write_s": write_s, "ply_read_s": read_s, "ply_bytes": size}


def main() -> None:
    """Print, and write as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splats", type=int, default=SPLATS)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    figures = measure(args.splats)
    print(
        f"ply, {figures['splats']} splats, {figures['ply_bytes'] / 1e6:.1f} MB: write {figures['ply_write_s']:.3f} s, "
        f"read {figures['ply_read_s']:.3f} s (medians of {REPEATS})"
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
