"""The proof that a stage continues exactly: stopped and resumed, it leaves what an undisturbed run left."""

import dataclasses
import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from training.config.common import StageConfig
from training.loop import train
from training.recipe import run_stage, stage_lineage
from training.stages import build_stage


class Killed(Exception):
    """Stands for a power cut."""


def check_resume(whole: StageConfig, out: Path, step: int, stop: signal.Signals | None = None) -> None:
    """Train again into `out`, stop in step `step`, resume, and compare with the finished run of `whole`.

    Args:
        whole: A run that has finished.
        out: Folder of the other one.
        step: In which it ends.
        stop: Signal after which the step is made and a checkpoint written; without one the run ends at once, and goes
            on from an earlier checkpoint, which there must be.
    """
    again = dataclasses.replace(whole, run=dataclasses.replace(whole.run, out=out))
    stage = build_stage(again)
    loss = stage.loss

    def stopped_loss(batch: Any, generator: torch.Generator) -> Any:
        if stage.updates == step - 1:
            if stop is None:
                raise Killed
            os.kill(os.getpid(), stop)
        return loss(batch, generator)

    stage.loss = stopped_loss  # type: ignore[method-assign]
    with nullcontext() if stop else pytest.raises(Killed):
        assert train(stage, again, stage_lineage(again)).step == step
    assert list((out / "checkpoints").iterdir()) and not (out / "finished").exists()
    assert run_stage(dataclasses.replace(again, run=dataclasses.replace(again.run, resume=True))).finished
    files = sorted(path.name for path in (whole.run.out / "finished").glob("*.safetensors"))
    assert files and files == sorted(path.name for path in (out / "finished").glob("*.safetensors"))
    for name in files:
        assert (out / "finished" / name).read_bytes() == (whole.run.out / "finished" / name).read_bytes(), name
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, whole.optim.steps + 1))
