"""`python -m benchmarks [NAME ...]`: run every benchmark, or those named, and keep their figures for this machine.

Figures and the versions they were measured with are written to `benchmarks/results/<machine>/<name>.json`, those that
are the same on every machine to `benchmarks/results/<name>.json`. `python -m benchmarks readme [--write]` compares the
README's figures with them, or pastes them.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import readme
from benchmarks.machine import machine_name

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


def main() -> int:
    """Run benchmarks one after the other and return how many failed, or check the README."""
    if sys.argv[1:2] == ["readme"]:
        return readme.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)} (default: all); or: readme"
    )
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    results = Path(__file__).parent / "results"
    folder = results / machine_name()
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for number, name in enumerate(names, start=1):
        print(f"\n=== {number} of {len(names)}: {name}", flush=True)
        module, *arguments = BENCHMARKS[name]
        path = (results if name in EVERYWHERE else folder) / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments, "--json", str(path)]
        failed += subprocess.run(command).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
