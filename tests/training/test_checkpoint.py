"""Checkpoints are whole or absent; finished stages are verified."""

import dataclasses
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from training.checkpoint import (
    CheckpointError,
    check_same_run,
    list_checkpoints,
    load_checkpoint,
    load_finished,
    newest_checkpoint,
    read_finished,
    save_checkpoint,
    save_finished,
)
from training.config.common import Data, Optim, RunOptions, to_plain
from training.config.recon import ReconConfig


def test_the_newest_are_kept_and_read_back(tmp_path: Path) -> None:
    for step in (5, 10, 100_000, 1_000_000):
        save_checkpoint(tmp_path, step, {"step": step, "weight": torch.arange(3)}, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["100000.pt", "1000000.pt"]
    state = load_checkpoint(list_checkpoints(tmp_path)[-1])
    assert state["step"] == 1_000_000 and torch.equal(state["weight"], torch.arange(3))


def test_a_full_disk_leaves_the_old_checkpoints_and_no_rubbish(tmp_path: Path, small_files: None) -> None:
    save_checkpoint(tmp_path, 1, {"step": 1}, keep=1)
    with pytest.raises(CheckpointError, match=r"000002.pt: cannot be written: .*; what was saved before it is whole"):
        save_checkpoint(tmp_path, 2, {"weight": torch.zeros(100_000)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["000001.pt"]
    assert load_checkpoint(tmp_path / "000001.pt")["step"] == 1
    with pytest.raises(CheckpointError, match=r"finished: cannot be written: .*; what was saved before it is whole"):
        save_finished(tmp_path, {"net": nn.Linear(300, 300)}, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["000001.pt"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files of this process cannot grow beyond 64 KiB, which is reported as a full disk is."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_newest_checkpoint_that_can_be_read_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert newest_checkpoint(tmp_path) is None
    older, newer = (save_checkpoint(tmp_path, step, {"step": step}, keep=2) for step in (1, 2))
    newer.write_bytes(newer.read_bytes()[:400])
    path, state = newest_checkpoint(tmp_path)
    assert (path, state["step"]) == (older, 1)
    printed = capsys.readouterr().err
    assert "000002.pt: cannot be read" in printed and printed.endswith("continuing from 000001.pt\n")
    older.write_bytes(b"")
    with pytest.raises(CheckpointError, match="000002.pt: cannot be read .*; .*000001.pt: cannot be read"):
        newest_checkpoint(tmp_path)


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    for step, best in ((1, True), (2, True), (3, False), (4, False)):
        save_checkpoint(tmp_path, step, {"step": step}, 2, best)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000003.pt", "000004.pt"]
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 2


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"weight": torch.zeros(1000)}, keep=1)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="000001.pt: cannot be read"):
        load_checkpoint(path)


def stored(config: ReconConfig, step: int = 10) -> dict[str, Any]:
    return {"stage": "recon", "processes": 1, "step": step, "config": to_plain(config)}


def check(config: ReconConfig, stage: str = "recon", processes: int = 1, **changed: Any) -> None:
    check_same_run(Path("x.pt"), stored(config), dataclasses.replace(config, **changed), stage, processes)


def test_another_run_is_refused_with_the_field_that_differs() -> None:
    config = ReconConfig(optim=Optim(steps=20, warmup_steps=0))
    check(config, run=RunOptions(out=Path("elsewhere")), preset="named otherwise", start=Path("moved"))
    for changed, message in {
        r"data.batch_size = 8, this run has 3$": {"data": Data(batch_size=3)},
        r"run.seed = 0, this run has 1$": {"run": RunOptions(seed=1)},
        r"run.threads = 2, this run has 1, on which gradients": {"run": RunOptions(threads=1)},
        r"by stage recon, this run is of stage vae": {"stage": "vae"},
        r"with 1 processes, this run has 2: batches and noise are divided": {"processes": 2},
        r"steps = 20, this run has 30: the learning rate of schedule cosine": {"optim": replaced(config, steps=30)},
        r"has made 10 steps, this run has optim.steps = 9": {"optim": replaced(config, steps=9)},
    }.items():
        with pytest.raises(CheckpointError, match="x.pt: .*" + changed):
            check(config, **message)


def test_more_steps_are_possible_where_the_schedule_does_not_depend_on_them() -> None:
    config = ReconConfig(optim=Optim(steps=20, warmup_steps=0, schedule="constant"))
    check(config, optim=replaced(config, steps=30))
    check(config, optim=replaced(config, steps=10))


def replaced(config: ReconConfig, **changed: Any) -> Optim:
    return dataclasses.replace(config.optim, **changed)


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


def test_a_broken_parent_is_named(tmp_path: Path) -> None:
    save_finished(tmp_path, {"net": nn.Linear(3, 2)}, {}, {})
    weights = tmp_path / "finished" / "net.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="net.safetensors: does not fit: "):
        load_finished(tmp_path, "net", nn.Linear(3, 2))
    (tmp_path / "finished" / "finished.json").write_text('{"files": ')
    with pytest.raises(CheckpointError, match="finished.json: cannot be read as a finished stage's list"):
        read_finished(tmp_path)
