"""Checkpoints that are either whole or absent, and the finished weights of a stage.

Below a run's folder::

    checkpoints/000250.pt    everything needed to continue; only the newest `keep` stay, and best.pt
    finished/                <network>.safetensors and finished.json: what later stages and the bundle read
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from diffsplat.bundle import replace_folder
from diffsplat.integrity import describe_file
from training.config.common import StageConfig, to_plain

FINISHED = "finished"
MANIFEST = "finished.json"
BEST = "best.pt"
# may change when a run is continued, and so may the folders of parents
_FREE_FIELDS = ("preset", "cadence", "run", "data.workers", "data.prefetch", "data.cache")
_LENGTH = ("optim.steps", "optim.epochs")  # compared by a rule of their own


class CheckpointError(ValueError):
    """A checkpoint or a finished stage is missing, damaged or from another run; the message names the file."""


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int, best: bool = False) -> Path:
    """Write ``<folder>/<step>.pt`` through a temporary file, then drop all but the newest `keep`.

    Args:
        folder: Made if missing.
        step: Updates made.
        state: Tensors, numbers and strings.
        keep: How many of the newest stay.
        best: Whether the checkpoint is the best so far, which stays as ``best.pt``.

    Raises:
        CheckpointError: the file cannot be written, as on a full disk; those before it are whole.
    """
    target = folder / f"{step:06}.pt"
    with _whole_or_absent(target) as temporary:
        torch.save(dict(state), temporary)
    if best:
        with _whole_or_absent(folder / BEST) as temporary:
            temporary.unlink()
            try:
                temporary.hardlink_to(target)
            except OSError:  # a file system without links
                shutil.copyfile(target, temporary)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return target


@contextmanager
def _whole_or_absent(target: Path) -> Iterator[Path]:
    """A temporary file beside `target`, which becomes it at the end; an error leaves nothing behind."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Report what fails inside, such as a full disk, as a `CheckpointError` that names `target`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise CheckpointError(f"{target}: cannot be written: {reason}; what was saved before it is whole") from error


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


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, and what it holds; None if there is none at all.

    One that cannot be read, as after a power cut, is passed over and named on the standard error stream.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    broken = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            broken.append(str(error))
            continue
        for message in broken:
            print(f"{message}; continuing from {path.name}", file=sys.stderr)
        return path, state
    if broken:
        raise CheckpointError("; ".join(broken))
    return None


def check_same_run(path: Path, stored: Mapping[str, Any], config: StageConfig, stage: str, processes: int) -> None:
    """Refuse to continue a run whose data, optimiser or losses have changed.

    Args:
        path: Of the checkpoint or manifest, for messages.
        stored: What it holds: stage, config, step, and of a checkpoint the number of processes.
        config: Of the run that is to continue it.
        stage: Name of that run's stage.
        processes: Of that run.

    Raises:
        CheckpointError: names the first field that differs and both values, and why it matters where that is not plain.
    """
    if stored.get("stage", stage) != stage:  # older manifests do not name it
        raise CheckpointError(f"{path}: was written by stage {stored['stage']}, this run is of stage {stage}")
    if stored.get("processes", processes) != processes:
        raise CheckpointError(
            f"{path}: was written with {stored['processes']} processes, this run has {processes}: batches and noise "
            "are divided among them"
        )
    before, now = _flat(stored["config"]), _flat(to_plain(config))
    free = {*_FREE_FIELDS, *config.parents}
    compared = sorted(name for name in before.keys() | now.keys() if not {name, name.split(".")[0]} & free)
    if "run.seed" in before:
        compared.append("run.seed")
        if torch.device(config.run.device).type == "cpu":
            compared.append("run.threads")
    for name in compared:
        if before.get(name) != now.get(name) and name not in _LENGTH:
            why = ", on which gradients on a CPU depend" if name == "run.threads" else ""
            raise CheckpointError(
                f"{path}: was written with {name} = {before.get(name)}, this run has {now.get(name)}{why}"
            )
    _check_length(path, before["optim.steps"], stored["step"], config)


def _check_length(path: Path, planned: int, done: int, config: StageConfig) -> None:
    """Refuse another number of steps where the past would have been another."""
    steps, schedule = config.optim.steps, config.optim.schedule
    if steps < done:
        raise CheckpointError(f"{path}: has made {done} steps, this run has optim.steps = {steps}")
    if steps != planned and schedule != "constant":
        raise CheckpointError(
            f"{path}: was written with optim.steps = {planned}, this run has {steps}: the learning rate of schedule "
            f"{schedule} depends on it; only that of constant does not"
        )


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
    with writing(out / FINISHED), tempfile.TemporaryDirectory(dir=out, prefix=".finished-") as temporary:
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
    try:
        facts = json.loads(path.read_text())
        files = facts["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read as a finished stage's list of files: {error}") from None
    for name, expected in files:
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
    except (RuntimeError, SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: does not fit: {' '.join(str(error).split())}") from None
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
