"""Every benchmark by its name, and how one is run."""

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
# name -> module of this package and its arguments; each prints its figures and writes them with `--json PATH`
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "rasterizer": ("rasterizer",),
    "cpu_backends": ("cpu_backends",),
    "backend_objects": ("backend_objects", "bundles/nano"),
    "formats": ("formats",),
    "training": ("training",),
    "quality_nano": ("quality", "bundles/nano", "--sweep"),
    "quality_pico": ("quality", "bundles/pico"),
    "ensemble_overhead": ("ensemble_overhead", "bundles/pico"),
    "edge_overhead": ("edge_overhead", "bundles/pico"),
    "load": ("load", "bundles/pico"),
    "recovery": ("recovery", "bundles/pico", "bundles/nano"),
    "refresh": ("refresh", "bundles/pico"),
    "import_memory": ("import_memory",),
    "fresh_clone": ("fresh_clone",),
    "soak": ("soak", "bundles/pico"),
    "request_cost": ("request_cost", "bundles/pico"),
    "fuzz": ("fuzz", "bundles/pico"),
    "stop_storm": ("stop_storm", "bundles/pico"),
    "engine_policy": ("engine_policy", "bundles/pico"),
    "previews": ("previews", "bundles/pico"),
    "flops": ("flops",),
    "precision": ("precision",),
    "mesh_render": ("mesh_render",),
    "loader": ("loader",),
    "furniture": ("furniture",),
    "resume": ("resume",),
}
EVERYWHERE = ("flops",)  # counted, not measured: the same on every machine


def run(name: str, path: Path) -> int:
    """Run a benchmark in a process of its own, which writes its figures to `path`; its exit code."""
    module, *arguments = BENCHMARKS[name]
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json", str(path)]
    return subprocess.run(command).returncode
