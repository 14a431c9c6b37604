"""Checkpoints are whole or absent; finished stages are verified."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training import checkpoint
from training.checkpoint import (
    CheckpointError,
    check_same_run,
    list_checkpoints,
    load_checkpoint,
    load_finished,
    read_finished,
    save_checkpoint,
    save_finished,
)
from training.config.common import Data, RunOptions, to_plain
from training.config.recon import ReconConfig


def test_the_newest_are_kept_and_read_back(tmp_path: Path) -> None:
    for step in (5, 10, 100_000, 1_000_000):
        save_checkpoint(tmp_path, step, {"step": step, "weight": torch.arange(3)}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["100000.pt", "1000000.pt"]
    state = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert state["step"] == 1_000_000 and torch.equal(state["weight"], torch.arange(3))


def test_a_write_that_fails_leaves_the_old_checkpoints_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1}, keep=1)

    def full_disk(state: Any, file: Any) -> None:
        file.write(b"half of a checkpoint")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, {"step": 2}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["000001.pt"]
    assert load_checkpoint(tmp_path / "000001.pt")["step"] == 1


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"weight": torch.zeros(1000)}, keep=1)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="000001.pt: cannot be read"):
        load_checkpoint(path)


def test_another_run_is_refused_with_the_field_that_differs(tmp_path: Path) -> None:
    config = ReconConfig()
    check_same_run(tmp_path, to_plain(config), dataclasses.replace(config, run=RunOptions(threads=1)))
    other = dataclasses.replace(config, data=Data(batch_size=3))
    with pytest.raises(CheckpointError, match=r"data.batch_size = 8, this run has 3"):
        check_same_run(tmp_path, to_plain(config), other)


def test_a_finished_stage_is_verified_and_loaded_frozen(tmp_path: Path) -> None:
    trained = nn.Linear(3, 2)
    save_finished(tmp_path, {"net": trained}, {"steps": 7}, {"words.txt": "red"})
    assert read_finished(tmp_path)["steps"] == 7
    loaded = load_finished(tmp_path, "net", nn.Linear(3, 2))
    assert torch.equal(loaded.weight, trained.weight)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(CheckpointError, match="did not train other"):
        load_finished(tmp_path, "other", nn.Linear(3, 2))
    with pytest.raises(CheckpointError, match="net.safetensors: does not fit"):
        load_finished(tmp_path, "net", nn.Linear(3, 5))
    (tmp_path / "finished" / "words.txt").write_text("blue")
    with pytest.raises(CheckpointError, match="words.txt"):
        read_finished(tmp_path)


def test_an_unfinished_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not the folder of a finished training stage"):
        read_finished(tmp_path)
