"""The loop on a toy stage: resume, stop signals, clipping, the NaN guard, averaged weights, the log."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toy import ToyStage, ToyStream, log, losses, toy_config
from training.checkpoint import load_checkpoint
from training.data.record import BrokenRecord
from training.loop import TrainingError, step_generator, train
from training.report import with_time_left

ROOT = Path(__file__).parents[2]


def test_it_learns_evaluates_and_logs(tmp_path: Path) -> None:
    stage = ToyStage()
    outcome = train(stage, toy_config(tmp_path, steps=120), {})
    assert outcome.finished and outcome.step == 120
    assert losses(tmp_path)[-1] < 0.1 * losses(tmp_path)[0]
    assert [r["step"] for r in log(tmp_path) if "validation/error" in r] == list(range(10, 121, 10))
    assert (tmp_path / "panels" / "000010_panel.png").is_file()
    assert stage.seen_training_mode == [False] * 12 and stage.model.training


def test_the_logged_rate_is_the_schedule_and_clipping_bounds_the_step(tmp_path: Path) -> None:
    train(ToyStage(), toy_config(tmp_path / "a"), {})
    rates = [record["lr"] for record in log(tmp_path / "a") if "lr" in record]
    assert rates[:7] == pytest.approx([0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.05], rel=0.01)

    clipped: list[float] = []
    stage = ToyStage(factor=1000.0)
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        clipped.append(torch.cat(gradients).norm().item())
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        train(stage, toy_config(tmp_path / "b", steps=5), {})
    norms = [record["grad_norm"] for record in log(tmp_path / "b") if "grad_norm" in record]
    assert len(norms) == 5 and min(norms) > 100  # before
    assert clipped == pytest.approx([1.0] * 5, rel=1e-3)  # after


def test_a_run_stopped_by_a_signal_continues_bit_exactly(tmp_path: Path) -> None:
    whole = ToyStage()
    train(whole, toy_config(tmp_path / "whole"), {})

    def stop(call: int) -> None:
        if call == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = ToyStage(at_step=stop)
    outcome = train(stopped, toy_config(tmp_path / "parts"), {})
    assert (outcome.finished, outcome.step) == (False, 12) and not stopped.exported
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the handler is gone again

    resumed = ToyStage()
    assert train(resumed, toy_config(tmp_path / "parts", resume=True), {}).finished
    assert resumed.calls == 30 - 12
    for name, tensor in whole.exported.items():
        assert torch.equal(tensor, resumed.exported[name]), name
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_killed_run_loses_only_what_is_behind_its_checkpoint(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(call: int) -> None:
        if call == 18:
            raise Killed

    whole = ToyStage()
    train(whole, toy_config(tmp_path / "whole"), {})
    with pytest.raises(Killed):
        train(ToyStage(at_step=kill), toy_config(tmp_path / "parts"), {})
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 17, "lo')  # a torn last line
    resumed = ToyStage()
    train(resumed, toy_config(tmp_path / "parts", resume=True), {})
    assert resumed.calls == 30 - 14  # the checkpoint of step 14
    assert torch.equal(whole.exported["weight"], resumed.exported["weight"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_run_that_kill_9_ended_continues_bit_exactly(tmp_path: Path) -> None:
    whole, resumed = ToyStage(), ToyStage()
    train(whole, toy_config(tmp_path / "whole"), {})
    given = {"out": str(tmp_path / "parts"), "steps": 30, "optim": {}, "stage": {}, "kill_at": 18}
    process = subprocess.run([sys.executable, "-m", "tests.training.toy", json.dumps(given)], cwd=ROOT, timeout=300)
    assert process.returncode == -signal.SIGKILL
    train(resumed, toy_config(tmp_path / "parts", resume=True), {})
    assert resumed.calls == 30 - 14
    assert torch.equal(whole.exported["weight"], resumed.exported["weight"])
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_an_unreadable_object_loses_no_step(tmp_path: Path) -> None:
    def fail(call: int) -> None:
        if call == 7:
            raise BrokenRecord("object 5: record has no part '00000.png'")

    whole, cut = ToyStage(), ToyStage(at_step=fail)
    train(whole, toy_config(tmp_path / "whole", steps=12), {})
    config = toy_config(tmp_path / "cut", steps=12)
    with pytest.raises(BrokenRecord, match="object 5"):
        train(cut, config, {})
    resumed = dataclasses.replace(config, run=dataclasses.replace(config.run, resume=True))
    assert train(ToyStage(), resumed, {}).finished
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_what_is_exported_is_the_average_not_the_last_update(tmp_path: Path) -> None:
    stage = ToyStage()
    train(stage, toy_config(tmp_path), {})
    assert not torch.equal(stage.exported["weight"], stage.model.weight)


def test_a_loss_that_is_not_finite_stops_with_stage_and_step(tmp_path: Path) -> None:
    stage = ToyStage()

    def poison(call: int) -> None:
        if call == 9:
            stage.factor = float("nan")

    stage.at_step = poison
    with pytest.raises(TrainingError, match="stage toy, step 8: loss nan"):
        train(stage, toy_config(tmp_path), {})
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["000007.pt"]


def test_noise_differs_by_seed_rank_and_step_and_repeats() -> None:
    drawn = {
        (seed, rank, step): torch.randn(4, generator=step_generator(seed, rank, step))
        for seed in (0, 1) for rank in (0, 1) for step in (0, 1, 1000)
    }  # fmt: skip
    assert len({tuple(values.tolist()) for values in drawn.values()}) == len(drawn)
    assert torch.equal(drawn[1, 1, 1000], torch.randn(4, generator=step_generator(1, 1, 1000)))


def test_resume_with_another_optimiser_is_refused(tmp_path: Path) -> None:
    train(ToyStage(), toy_config(tmp_path, steps=7), {})
    other = toy_config(tmp_path, steps=7, resume=True)
    with pytest.raises(ValueError, match=r"optim.lr = 0.05, this run has 0.1"):
        train(ToyStage(), dataclasses.replace(other, optim=dataclasses.replace(other.optim, lr=0.1)), {})


def test_time_left_is_told_after_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(with_time_left(range(25), "counting")) == list(range(25))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10 and lines[0].startswith("counting: 3/25, ") and lines[-1] == "counting: 25/25, 0 s left"


def poison_calls(stage: ToyStage, *bad: int) -> ToyStage:
    stage.at_step = lambda call: setattr(stage, "factor", float("nan") if call in bad else 1.0)
    return stage


def test_updates_that_are_not_finite_are_skipped_and_logged_up_to_a_limit(tmp_path: Path) -> None:
    """Weights and averages stay as they were; a resumed run remembers how many it has skipped."""
    allowed = {"max_skipped": 2}
    train(poison_calls(ToyStage(), 9, 12), toy_config(tmp_path / "a", optim=allowed), {})
    skipped = [record for record in log(tmp_path / "a") if "skipped" in record]
    assert [record["step"] for record in skipped] == [8, 11]
    assert skipped[0]["skipped"] == "loss nan, gradient norm nan"
    rest = [record["loss"] for record in log(tmp_path / "a") if "loss" in record and record["step"] not in (9, 12)]
    assert len(rest) == 28 and all(map(math.isfinite, rest))
    with pytest.raises(TrainingError, match=r"step 20: loss nan.*optim.max_skipped = 2 such updates may be skipped"):
        train(poison_calls(ToyStage(), 9, 12, 21), toy_config(tmp_path / "b", optim=allowed), {})
    with pytest.raises(TrainingError, match="step 26: "):  # 20 steps done, two skipped among them
        train(poison_calls(ToyStage(), 7), toy_config(tmp_path / "b", optim=allowed, resume=True), {})


def test_a_run_with_a_constant_rate_may_make_more_steps(tmp_path: Path) -> None:
    whole, longer = ToyStage(), ToyStage()
    constant = {"schedule": "constant"}
    train(whole, toy_config(tmp_path / "whole", 20, constant), {})
    train(ToyStage(), toy_config(tmp_path / "parts", 10, constant), {})
    train(longer, toy_config(tmp_path / "parts", 20, constant, resume=True), {})
    assert longer.calls == 10
    assert torch.equal(whole.exported["weight"], longer.exported["weight"])


def test_a_refused_resume_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    train(ToyStage(), toy_config(tmp_path, 7), {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"optim.eps = 1e-08, this run has 0.1"):
        train(ToyStage(), toy_config(tmp_path, 7, {"eps": 0.1}, resume=True), {})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_broken_newest_checkpoint_costs_only_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = ToyStage()
    train(whole, toy_config(tmp_path), {})
    newest = tmp_path / "checkpoints" / "000030.pt"
    newest.write_bytes(newest.read_bytes()[:300])
    resumed = ToyStage()
    train(resumed, toy_config(tmp_path, resume=True), {})
    assert resumed.calls == 2 and "continuing from 000028.pt" in capsys.readouterr().err
    assert torch.equal(whole.exported["weight"], resumed.exported["weight"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_data_is_prepared_ends_the_run_there(
    tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    class Preparing(ToyStage):
        def stream(self, rank: int, world_size: int) -> ToyStream:
            os.kill(os.getpid(), number)
            raise AssertionError("not reached")

    outcome = train(Preparing(), toy_config(tmp_path), {})
    assert (outcome.finished, outcome.step) == (False, 0)
    assert f"{signal.Signals(number).name} while networks and data were prepared" in capsys.readouterr().out
    assert not list(tmp_path.glob("**/*.pt"))


def test_each_option_of_the_average_has_an_effect(tmp_path: Path) -> None:
    def exported(name: str, **optim: Any) -> torch.Tensor:
        stage = ToyStage()
        train(stage, toy_config(tmp_path / name, 12, optim), {})
        return torch.cat([stage.exported["weight"].flatten(), stage.model.weight.detach().flatten()])

    plain = exported("plain")
    off = exported("off", ema=False)
    assert torch.equal(off[:3], off[3:]) and torch.equal(off[3:], plain[3:])
    options = {
        "ema_max_decay": 0.5, "ema_warmup": False, "ema_inverse_gamma": 2.0, "ema_power": 0.5,
        "ema_min_decay": 0.9, "ema_update_after_step": 4,
    }  # fmt: skip
    for name, value in options.items():
        changed = exported(name, **{name: value})
        assert torch.equal(changed[3:], plain[3:]) and not torch.equal(changed[:3], plain[:3]), name


def test_the_best_checkpoint_is_that_of_the_best_evaluation(tmp_path: Path) -> None:
    stage = ToyStage()
    train(stage, toy_config(tmp_path, 60, {"lr": 0.3, "schedule": "constant"}), {})
    errors = {r["step"]: r["validation/error"] for r in log(tmp_path) if "validation/error" in r}
    best = load_checkpoint(tmp_path / "checkpoints" / "best.pt")
    assert best["step"] == min(errors, key=errors.__getitem__) and best["best"] == -min(errors.values())
