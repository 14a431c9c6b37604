"""Checkpoints that are either whole or absent, and the finished weights of a stage.

Below a run's folder::

    checkpoints/000250.pt    everything needed to continue; only the newest `keep` stay
    finished/                <network>.safetensors and finished.json: what later stages and the bundle read
"""

import json
import os
import pickle
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffsplat.bundle import replace_folder
from diffsplat.integrity import describe_file
from training.config.common import StageConfig, to_plain

FINISHED = "finished"
MANIFEST = "finished.json"
# may change when a run is continued
_FREE_FIELDS = ("preset", "cadence", "run", "recon", "vae", "start", "data.workers", "data.prefetch", "data.cache")


class CheckpointError(ValueError):
    """A checkpoint or a finished stage is missing, damaged or from another run; the message names the file."""


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write ``<folder>/<step>.pt`` through a temporary file, then drop all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{step:06}.pt"
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{target.name}-", delete=False) as file:
        try:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(folder.glob("[0-9]*.pt"), key=lambda path: int(path.stem))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; tensors, numbers and strings only.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {error}") from error


def check_same_run(path: Path, stored: dict[str, Any], config: StageConfig) -> None:
    """Refuse to continue a run whose data, optimiser or losses have changed.

    Raises:
        CheckpointError: names the first field that differs and both values.
    """
    before, now = _flat(stored), _flat(to_plain(config))
    for name in sorted(before.keys() | now.keys()):
        free = name in _FREE_FIELDS or name.split(".")[0] in _FREE_FIELDS
        if not free and before.get(name) != now.get(name):
            raise CheckpointError(f"{path}: was written with {name} = {before.get(name)}, this run has {now.get(name)}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def save_finished(
    out: Path, networks: Mapping[str, nn.Module], facts: dict[str, Any], texts: Mapping[str, str]
) -> None:
    """Write a stage's networks (float32), facts and text files into a folder that appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".finished-") as temporary:
        staging = Path(temporary) / FINISHED
        staging.mkdir()
        for name, module in networks.items():
            state = {key: tensor.detach().contiguous().cpu().clone() for key, tensor in module.state_dict().items()}
            save_file(state, staging / f"{name}.safetensors")
        for name, text in texts.items():
            (staging / name).write_text(text)
        files = {path.name: describe_file(path) for path in sorted(staging.iterdir())}
        (staging / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=2) + "\n")
        replace_folder(staging, out / FINISHED)


def read_finished(out: Path) -> dict[str, Any]:
    """Verify the files of a finished stage and return its facts.

    Raises:
        CheckpointError: the stage has not finished, or a file does not match; the message names it.
    """
    path = out / FINISHED / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {out} is not the folder of a finished training stage")
    facts = json.loads(path.read_text())
    for name, expected in facts["files"].items():
        file = path.parent / name
        if not file.is_file() or describe_file(file) != expected:
            raise CheckpointError(f"{file}: missing or not what {path} lists")
    return facts


def load_finished(out: Path, name: str, module: nn.Module) -> nn.Module:
    """`module` with the finished weights of network `name`, frozen and in evaluation mode."""
    path = out / FINISHED / f"{name}.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {out} did not train {name}")
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit: {error}") from None
    return module.eval().requires_grad_(False)


def git_revision() -> str:
    """Commit of the source tree, with ``+changes`` if it has uncommitted changes; ``unknown`` outside a repository."""
    root = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root, capture_output=True, text=True, check=True, timeout=10,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+changes" if changed else "")
