"""`python -m benchmarks.rasterizer [--size 256] [--json PATH]`: the CPU rasterizer against torch and a scalar loop.

Candidates take turns in one process and their medians are compared, because the speed of a shared machine drifts. Rows
with one thread measure CPU time, which other processes hardly change. Rows with two threads measure wall time, which is
meaningful only if two cores are free: that is checked right before; if they are not, the row says so and omits torch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffsplat_client.cloud import VISIBLE_OPACITY

from benchmarks.machine import describe_machine
from benchmarks.scalar_blend import blend_frame_scalar
from benchmarks.splat_scene import Cameras, Scene, make_scene, orbit
from diffsplat.rasterize import cpu, rasterization, render_uint8, warm_up
from diffsplat.rasterize.kernels_blend import blend_frame
from diffsplat.rasterize.torch_reference import rasterize_reference

BAR = 15.0  # forward, 256 px, one thread: at least this many times as fast as pure torch
FRAMES = 24

Work = Callable[[], object]


class Row(NamedTuple):
    """One comparison; milliseconds are medians."""

    name: str
    threads: int
    kernels_ms: float
    yardstick: str  # "" where there is nothing to compare with
    yardstick_ms: float | None
    ratio: float | None  # median over turns of yardstick / kernels
    cores_free: bool | None = None  # for two threads: whether two cores were free right before
    bar: float | None = None  # of the ratio, at least


def timed_ms(work: Work, threads: int) -> float:
    """Milliseconds of one call: CPU time for one thread, wall time for several."""
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    work()
    return 1e3 * (clock() - start)


def two_cores_are_free() -> bool:
    """Whether two threads of pure arithmetic get (nearly) two cores: CPU time over wall time, twice 0.1 s of numpy."""
    matrix = np.ones((700, 700), np.float32)

    def spin() -> None:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            np.sqrt(matrix)

    cpu_start, wall_start = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: spin(), range(2)))
    return (time.process_time() - cpu_start) / (time.perf_counter() - wall_start) > 1.7


def compare(name: str, threads: int, kernels: Work, yardstick_name: str = "", yardstick: Work | None = None,
            turns: int = 5, per: int = 1) -> Row:  # fmt: skip
    """Let both take turns, after one unmeasured call of the kernels; `per` frames count as one."""
    torch.set_num_threads(threads)
    kernels()
    free = two_cores_are_free() if threads == 2 else None
    if free is False:
        yardstick = None
    ours, theirs = [], []
    for _ in range(turns):
        # The kernels are short: several calls per turn, of which the median counts.
        ours.append(statistics.median(timed_ms(kernels, threads) for _ in range(3)) / per)
        if yardstick is not None:
            theirs.append(timed_ms(yardstick, threads) / per)
    ratios = [b / a for a, b in zip(ours, theirs, strict=False)]
    median = statistics.median
    row = Row(
        name,
        threads,
        median(ours),
        yardstick_name,
        median(theirs) if theirs else None,
        median(ratios) if ratios else None,
        free,
    )
    compared = f"{row.yardstick:>12} {row.yardstick_ms:10.1f} ms {row.ratio:7.1f} x" if row.ratio else ""
    busy = "   (two cores were not free: not comparable)" if free is False else ""
    print(f"{row.name:<58} {row.threads} {row.kernels_ms:9.1f} ms {compared}{busy}", flush=True)
    return row


def forward_rows(scene: Scene, size: int) -> list[Row]:
    """Serving: 262,144 splats, no gradients."""
    one, two, many = orbit(1, size), orbit(2, size), orbit(FRAMES, size)
    rows = []

    def render(function: Callable[..., Any], cameras: Cameras, **options: Any) -> Work:
        return lambda: function(*scene, *cameras, size, size, render_mode="RGB+ED", **options)

    with torch.no_grad():
        for threads, cameras in ((1, one), (2, two)):
            rows.append(
                compare(
                    f"forward, RGB + depth, {size} px, {threads} frame(s), per frame", threads,
                    render(rasterization, cameras), "torch tiles", render(rasterize_reference, cameras, tiled=True),
                    turns=3, per=threads,
                )
            )  # fmt: skip
        for threads in (1, 2):
            rows.append(
                compare(
                    f"{FRAMES} uint8 frames, {size} px, per frame", threads,
                    lambda: render_uint8(*scene, *many, size, size), turns=3, per=FRAMES,
                )
            )  # fmt: skip
    return rows


def training_rows(size: int = 64) -> list[Row]:
    """One training step's rendering: 16,384 splats, 8 views, forward and backward."""
    scene, cameras = make_scene(64), orbit(8, size)
    leaves = [s.requires_grad_() for s in scene]

    def step(function: Callable[..., Any], **options: Any) -> None:
        images, alphas = function(*leaves, *cameras, size, size, render_mode="RGB+ED", **options)[:2]
        torch.autograd.grad(images[..., :3].square().mean() + alphas.mean(), leaves)

    return [
        compare(
            f"16,384 splats, 8 views, {size} px, forward + backward", threads,
            lambda: step(rasterization), "torch tiles", lambda: step(rasterize_reference, tiled=True), turns=3,
        )
        for threads in (1, 2)
    ]  # fmt: skip


def blend_row(scene: Scene, size: int) -> Row:
    """The compositing loop alone."""
    view, camera = cpu.View(size, size, 0.01, 1e10, 0.3), orbit(1, size)
    arrays = [s.numpy() for s in scene]
    prepared = cpu.prepare(arrays[0], arrays[1], arrays[2], None, arrays[3], arrays[4])
    rows = cpu.cameras(camera.viewmats.numpy(), camera.intrinsics.numpy(), view)
    frame = cpu.see(prepared, rows[0], view, cpu.Scratch())
    acc = np.empty((size, size, 5), np.float32)
    arguments = frame.records, frame.tile_starts, frame.lists, size, size, view.tile, acc
    blend_frame_scalar(*arguments)  # compile
    return compare(
        f"blend alone, {size} px",
        1,
        lambda: blend_frame(*arguments),
        "scalar loop",
        lambda: blend_frame_scalar(*arguments),
    )


def start_rows() -> list[Row]:
    """A server's warm-up in a fresh process: compiling, and from the cache."""
    code = (
        "import time; from diffsplat.rasterize import warm_up; start = time.process_time(); warm_up(gradients=True); "
        "print(1e3 * (time.process_time() - start))"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("compiling", "from the cache"):
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            output = subprocess.run(
                [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
            )
            rows.append(
                Row(f"warm_up(gradients=True) in a new process, {name}", 1, float(output.stdout), "", None, None)
            )
            print(f"{rows[-1].name:<58} 1 {rows[-1].kernels_ms:9.1f} ms", flush=True)
    return rows


def main() -> int:
    """Print the table; exit code 1 where the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rasterizer", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="frame width and height in pixels (default 256)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    warm_up(gradients=True)
    scene = make_scene(256)
    visible = int((scene.opacities >= VISIBLE_OPACITY).sum())
    print(f"{scene.means.shape[0]:,} splats, {visible:,} with opacity of 1/255 or more")
    print(f"{'':<58} threads   kernels")
    rows = [
        *forward_rows(scene, arguments.size),
        blend_row(scene, arguments.size),
        *training_rows(),
        *start_rows(),
    ]
    rows[0] = rows[0]._replace(bar=BAR)
    ratio = rows[0].ratio
    assert ratio is not None
    verdict = "met" if ratio >= BAR else "MISSED"
    print(f"bar: forward on one thread at least {BAR:.0f} times as fast as torch tiles: {verdict}")
    if arguments.json:
        report = {**describe_machine(), "size": arguments.size, "rows": [row._asdict() for row in rows]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(ratio < BAR)


if __name__ == "__main__":
    sys.exit(main())
