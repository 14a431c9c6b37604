"""A toy stage, for tests of the loop; ``python -m tests.training.toy JSON`` trains it in processes of its own."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.config.common import Cadence, Optim, RunOptions, StageConfig
from training.launch import by_main_process
from training.loop import train
from training.optim import decay_groups
from training.stage import Evaluation


class ToyStream:
    """Rows of a linear problem, divided among ranks; the cursor is the number of global batches handed out."""

    batches_per_epoch = 13

    def __init__(self, rank: int, world_size: int, batch_size: int) -> None:
        self.rank, self.world_size, self.batch_size = rank, world_size, batch_size
        self.position = 0

    def __next__(self) -> tuple[Tensor, Tensor]:
        first = (self.position * self.world_size + self.rank) * self.batch_size
        rows = [torch.randn(3, generator=torch.Generator().manual_seed(first + i)) for i in range(self.batch_size)]
        self.position += 1
        inputs = torch.stack(rows)
        return inputs, inputs @ torch.tensor([[1.0], [-2.0], [3.0]])

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class ToyStage:
    """Linear regression with noise on its inputs; `at_step` is called with the number of the call inside the loss."""

    name = "toy"
    updates = 0
    device = torch.device("cpu")

    def __init__(
        self,
        at_step: Callable[[int], None] | None = None,
        factor: float = 1.0,
        noise: float = 0.1,
        batch_size: int = 8,
    ) -> None:
        self.at_step, self.factor, self.noise, self.batch_size = at_step, factor, noise, batch_size
        self.calls = 0
        self.drawn: list[float] = []
        self.exported: dict[str, Tensor] = {}
        self.seen_training_mode: list[bool] = []

    def build(self) -> nn.Module:
        self.model = nn.Linear(3, 1)
        return self.model

    def param_groups(self) -> list[dict[str, Any]]:
        return decay_groups([self.model], 0.01)

    def stream(self, rank: int, world_size: int) -> ToyStream:
        return ToyStream(rank, world_size, self.batch_size)

    def validation_batch(self) -> tuple[Tensor, Tensor]:
        stream = ToyStream(0, 1, 8)
        stream.position = 10_000
        return next(stream)

    def loss(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        if self.at_step is not None:
            self.at_step(self.calls)
        inputs, targets = batch
        noise = torch.randn(inputs.shape, generator=generator)
        self.drawn.append(noise[0, 0].item())
        error = (self.model(inputs + self.noise * noise) - targets).square().mean() * self.factor
        return error, {"error": error.detach()}

    def evaluate(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Evaluation:
        self.seen_training_mode.append(self.model.training)
        error = (self.model(batch[0]) - batch[1]).square().mean().item()
        return Evaluation({"error": error}, {"panel": np.zeros((4, 4, 3), np.uint8)})

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        self.exported = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


class ToyConfig(StageConfig):
    best = "-error"


def toy_config(out: Path, steps: int = 30, optim: dict[str, Any] | None = None, **run: Any) -> StageConfig:
    return ToyConfig(
        preset="toy",
        optim=Optim(**{"steps": steps, "lr": 0.05, "warmup_steps": 5, **(optim or {})}),
        cadence=Cadence(log_every=1, evaluate_every=10, save_every=7),
        run=RunOptions(out=out, threads=1, **run),
    )


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in log(out) if "loss" in record]


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    stage = ToyStage(**given["stage"])
    if "kill_at" in given:
        stage.at_step = lambda call: os.kill(os.getpid(), signal.SIGKILL) if call == given["kill_at"] else None
    out = Path(given["out"])
    outcome = train(stage, toy_config(out, given["steps"], given["optim"]), {})
    assert outcome.finished
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    (out / f"drawn_{rank}.json").write_text(json.dumps(stage.drawn))
    by_main_process(lambda: (out / f"made_by_{rank}").touch())
    assert (out / "made_by_0").exists()
