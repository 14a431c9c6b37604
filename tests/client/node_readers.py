"""Programs of npm that read our files, installed once into the user's cache folder."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

HERE = Path(__file__).parent / "node"
LOCK = HERE / "package-lock.json"
INSTALL_S, RUN_S = 500, 300
# the peer that is left out is a graphics engine of 100 MB; no install script is run
_INSTALL = ("npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund", "--prefer-offline")


def installed() -> Path:
    """The folder with `node_modules`.

    Without Node or a registry the test is skipped, saying why; it fails instead where DIFFSPLAT_REQUIRE_NODE is set.
    """
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        unavailable(f"{missing[0]} is not on this machine: install Node.js 20 or newer")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffsplat"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"node-readers-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"
    with (cache / "node-readers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test processes one installs
        if not folder.exists():
            _install(folder)
    return folder


def _install(folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for file in ("package.json", "package-lock.json"):
        shutil.copy(HERE / file, partial)
    try:
        done = subprocess.run(_INSTALL, cwd=partial, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        unavailable(f"npm did not install within {INSTALL_S} s")
    if done.returncode:
        unavailable(f"npm cannot install: {done.stderr.strip().splitlines()[-1:]}")
    partial.rename(folder)


def unavailable(reason: str) -> NoReturn:
    """End the test."""
    if os.environ.get("DIFFSPLAT_REQUIRE_NODE"):
        pytest.fail(reason)
    pytest.skip(reason)


def run_script(folder: Path, script: str, file: Path, *more: str) -> dict[str, Any]:
    """What one of the scripts beside the package file says about a file."""
    return json.loads(_run("node", HERE / script, folder, file, *more))


def splat_transform(folder: Path, source: Path, target: Path) -> None:
    """Convert a file with PlayCanvas' program, on the CPU."""
    cli = folder / "node_modules" / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    _run("node", cli, "-q", "-w", "-g", "cpu", source, target)


def _run(*command: "str | Path") -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Columns of numbers by their names in the first line."""
    names = path.read_text().split("\n", 1)[0].strip().split(",")
    return dict(zip(names, np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2).T, strict=True))
