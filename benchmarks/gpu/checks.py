"""Whether a GPU computes the same: the GPU tests, gsplat against the CPU kernels, sampling runs in every precision."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.measure import median_of
from benchmarks.gpu.runner import Task
from benchmarks.precision import PARTS, golden_runs
from benchmarks.precision import holds as bounds_hold
from benchmarks.splat_scene import make_scene, orbit
from diffsplat.backends.devices import find_device
from diffsplat.graph import Precision
from diffsplat.rasterize import rasterization

ROOT = Path(__file__).resolve().parents[2]
VIEWS = 4
CLOSE = 2e-3  # two renderers differ by more only where a threshold flips
EXACT = 1e-3  # of the latents, fp32 on a card against the CPU: sums in another order, multiplied by guidance


def gpu_tests(task: Task) -> None:
    """`pytest tests/gpu` in a process of its own: a row per test that did not pass, and one for the counts."""
    report = task.settings.out / "tests.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/gpu",
        f"--junit-xml={report.absolute()}",
    ]
    ended = subprocess.run(command, cwd=ROOT, timeout=max(task.left_s - 2, 1), capture_output=True, text=True)
    if not report.is_file():
        raise RuntimeError(f"pytest ended with {ended.returncode}: {(ended.stdout + ended.stderr)[-300:]}")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.parse(report).iter("testcase"):
        (outcome, message) = ("passed", "")
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                message = child.get("message", "").splitlines()[0] if child.get("message") else ""
        counts[outcome] += 1
        if outcome == "failed" or (outcome == "skipped" and counts["skipped"] == 1):
            task.log.add(test=f"{case.get('classname')}::{case.get('name')}", outcome=outcome, message=message)
    task.log.add(test="all of tests/gpu", outcome=", ".join(f"{count} {name}" for name, count in counts.items()))


def rasterizer(task: Task) -> None:
    """One object of full size from four cameras: error of its pixels, milliseconds per frame."""
    device = find_device(task.settings.device)
    scene = make_scene(16 if task.settings.tiny else 256)
    placed = [values.to(device) for values in scene]
    for size in (32,) if task.settings.tiny else (256, 512):
        cameras = orbit(VIEWS, size)
        draw = partial(rasterization, width=size, height=size, eps2d=0.0)
        expected, _, _ = draw(*scene, *cameras, backgrounds=torch.ones(VIEWS, 3))
        there = [values.to(device) for values in cameras]
        call = partial(draw, *placed, *there, backgrounds=torch.ones(VIEWS, 3, device=device))
        error = (call()[0].cpu() - expected).abs()
        close = float((error < CLOSE).float().mean())
        task.log.add(
            splats=len(scene.means),
            pixels=size,
            mean_error=float(error.mean()),
            share_below_0_002=close,
            ms_per_frame=median_of(call, device, task.seconds_per_figure) / VIEWS,
            holds=bool(error.mean() < 1e-4 and close > 0.999),
        )


def goldens(task: Task) -> None:
    """Sampling runs of the published code: a row per run and precision."""
    device = find_device(task.settings.device)
    precisions: tuple[Precision, ...] = ("bf16", "fp16") if device.type == "cpu" else ("fp32", "bf16", "fp16")
    parts = ("pipe_sd3_text",) if task.settings.tiny else PARTS
    for part in parts:
        for row in golden_runs(part, precisions, ["flow_euler"] if task.settings.tiny else (), device):
            holds = row.latents_error < EXACT if row.precision == "fp32" else bounds_hold(row)
            task.log.add(
                run=row.run,
                precision=row.precision,
                latents_error=row.latents_error,
                psnr_db=row.psnr_db,
                random_db=row.random_db,
                holds=holds,
            )
