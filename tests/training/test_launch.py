"""Processes, accumulation, precision and device of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toy import ToyStage, log, losses, toy_config
from training.loop import train

ROOT = Path(__file__).parents[2]
STEPS = 8
PAIR = {"accumulation": 2}


def run_here(out: Path, optim: dict[str, Any] | None = None, steps: int = STEPS, **stage: Any) -> ToyStage:
    toy = ToyStage(**stage)
    train(toy, toy_config(out, steps, optim), {})
    return toy


def test_two_processes_make_the_updates_of_one_that_accumulates(tmp_path: Path) -> None:
    """Through ``accelerate launch``, with gloo: equal losses, other noise on each rank, one writer."""
    one = run_here(tmp_path / "one", PAIR, batch_size=4)
    given = {"out": str(tmp_path / "two"), "steps": STEPS, "optim": {}, "stage": {"batch_size": 4}}
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    process = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "tests.training.toy", json.dumps(given)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    assert [record["step"] for record in log(tmp_path / "two") if "loss" in record] == list(range(1, STEPS + 1))
    first, second = (json.loads((tmp_path / "two" / f"drawn_{rank}.json").read_text()) for rank in (0, 1))
    assert first == one.drawn[0::2] and second == one.drawn[1::2]
    assert not set(first) & set(second)
    assert process.stdout.count("validation:") == 1  # rank 0 alone tells
    assert [path.name for path in (tmp_path / "two").glob("made_by_*")] == ["made_by_0"]  # the other one has waited
    assert sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir()) == [
        "000007.pt", "000008.pt", "best.pt",
    ]  # fmt: skip


def test_accumulated_batches_are_one_larger_batch(tmp_path: Path) -> None:
    whole = run_here(tmp_path / "whole", batch_size=8, noise=0.0)
    parts = run_here(tmp_path / "parts", PAIR, batch_size=4, noise=0.0)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    torch.testing.assert_close(parts.exported, whole.exported)
    rates = [[record["lr"] for record in log(tmp_path / name) if "lr" in record] for name in ("whole", "parts")]
    assert rates[0] == rates[1] and len(rates[0]) == STEPS  # the schedule counts updates, not batches


def test_epochs_count_updates_as_the_published_runs_do(tmp_path: Path) -> None:
    outcome = train(ToyStage(), toy_config(tmp_path, 5, {"epochs": 2, "accumulation": 2, "warmup_steps": 0}), {})
    assert outcome.step == 2 * 7  # 13 batches of the toy stream: 6 pairs and one more update
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["steps"] == 14


@pytest.mark.parametrize(
    ("run", "optim", "message"),
    [
        ({"device": "gpu"}, {}, "run.device = 'gpu' is not a device of torch"),
        ({"device": "mtia"}, {}, "run.device = 'mtia': torch .* finds .* on this machine"),
        ({}, {"precision": "fp16"}, "optim.precision = 'fp16' needs a GPU"),
        ({"tracker": "trackio"}, {}, "run.tracker = 'trackio': the package trackio is not installed"),
    ],
)
def test_what_the_machine_lacks_is_refused(
    run: dict[str, Any], optim: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no tracker is installed
    stage = ToyStage()
    with pytest.raises(ValueError, match=message):
        train(stage, toy_config(tmp_path / "run", 5, optim, **run), {})
    assert stage.calls == 0 and not (tmp_path / "run").exists()


def test_a_tracker_gets_what_the_log_gets(tmp_path: Path) -> None:
    train(ToyStage(), toy_config(tmp_path, 5, {"warmup_steps": 0}, tracker="tensorboard"), {})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "diffsplat"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path))
    assert [event.step for event in events.Scalars("validation/error")] == [5]
