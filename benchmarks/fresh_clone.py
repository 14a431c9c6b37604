"""What the demo takes on a fresh clone: disk, time and the server's memory.

    python -m benchmarks.fresh_clone [--folder DIR] [--json PATH]

Clones this repository's HEAD, installs what the demo needs with `make`, runs `make demo`, then starts the server again
and measures its processes after one object. Downloads Python packages unless pip has them; takes minutes and 3 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
# run by the clone's own interpreter, so that the clone's server and client are measured
_MEASURE_SERVER = """
import json, os, sys
from benchmarks.fresh_clone import proportional_bytes
from diffsplat.serving.server.server import TritonServer
from diffsplat_client.client import Client
with TritonServer(sys.argv[1]) as server, Client(server.grpc_url) as client:
    client.generate("a cupcake", timeout_s=600)
    print(json.dumps(proportional_bytes(os.getpid())))
"""


def disk_bytes(folder: Path) -> int:
    """What the files below a folder occupy, hard links once."""
    seen: dict[tuple[int, int], int] = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def descendants(root: int) -> list[int]:
    """Ids of the processes below a process, without itself."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        waiting += (below := children.get(waiting.pop(), []))
        found += below
    return found


def proportional_bytes(root: int) -> dict[str, int]:
    """Number of processes below a process, and their proportional set size: shared pages count once in all."""
    total = count = 0
    for process in descendants(root):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        count += 1
    return {"processes": count, "server_bytes": total}


def fresh_clone(folder: Path) -> Path:
    """A clone of this repository's HEAD in `folder`."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-local", str(ROOT), str(clone)], check=True)
    return clone


def measure(folder: Path) -> dict[str, Any]:
    """Clone into `folder`, install, run the demo, measure.

    Raises:
        subprocess.CalledProcessError: a step failed; its output has been printed.
    """
    clone = fresh_clone(folder)
    figures: dict[str, Any] = {"revision": _output(["git", "-C", str(clone), "rev-parse", "HEAD"]).strip()}
    figures["clone_bytes"] = disk_bytes(clone)
    figures["install_s"] = _seconds(["make", ".venv/.serve"], clone)
    figures["venv_bytes"] = disk_bytes(clone / ".venv")
    figures["demo_s"] = _seconds(["make", "demo", "PROMPT=a cupcake"], clone)
    command = [str(clone / ".venv/bin/python"), "-c", _MEASURE_SERVER, "build/nano"]
    return {**figures, **json.loads(_output(command, clone).splitlines()[-1])}


def _seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, env=_environment())
    return time.perf_counter() - started


def _output(command: list[str], folder: Path = ROOT) -> str:
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True, env=_environment()).stdout


def _environment() -> dict[str, str]:
    """Without this checkout's virtual environment and modules."""
    return {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS")}


def table(figures: dict[str, Any]) -> str:
    """The figures as lines to read."""
    return "\n".join(
        [
            f"disk: clone {figures['clone_bytes'] / 1e9:.1f} GB, .venv {figures['venv_bytes'] / 1e9:.1f} GB",
            f"server: {figures['processes']} processes, {figures['server_bytes'] / 1e9:.1f} GB (PSS)",
            f"time: install {figures['install_s']:.0f} s, demo {figures['demo_s']:.0f} s",
        ]
    )


def main() -> int:
    """Measure, print, and write as JSON when asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fresh_clone", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--folder", type=Path, help="where to clone; by default a temporary folder")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        figures = {**describe_machine(), **measure(Path(folder))}
    print(table(figures))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
