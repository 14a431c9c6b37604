"""The training loop. It does not depend on splats: a `Stage` defines networks, data, loss and evaluation.

One update: batch -> loss -> gradients -> clip -> AdamW at the step's learning rate -> EMA. All randomness comes from
(seed, rank, step), and the data stream has a cursor, so that a resumed run makes exactly the same updates.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoint import check_same_run, list_checkpoints, load_checkpoint, save_checkpoint
from training.config.common import StageConfig, to_plain
from training.ema import Ema
from training.optim import build_optimizer, learning_rate
from training.report import Reporter

_NOISE_STREAM, _EVALUATION_STREAM = 31, 32


class Stream(Protocol):
    """Endless batches of this rank, with a cursor."""

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, int]:
        """The cursor."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a cursor."""
        ...


class Evaluation(NamedTuple):
    """Scalars and panels of one evaluation on fixed objects."""

    scalars: dict[str, float]
    panels: dict[str, np.ndarray]  # name -> uint8 image [H, W, 3]


class Stage(Protocol):
    """A stage of training: `build` once, `loss` at every step, `evaluate` now and then, `export` at the end."""

    name: str
    updates: int  # so far; set by the loop before each loss: some terms grow over the first steps

    def build(self) -> nn.Module:
        """Build the networks and return the trained ones as one module."""
        ...

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser, trained parameters only."""
        ...

    def stream(self, rank: int, world_size: int) -> Stream:
        """Training batches."""
        ...

    def validation_batch(self) -> Any:
        """Fixed objects that training never uses."""
        ...

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and scalars to log; all noise comes from `generator`."""
        ...

    def evaluate(self, batch: Any, generator: torch.Generator) -> Evaluation:
        """Quality on a batch, with the current weights."""
        ...

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        """Write the files that later stages and the bundle read, with the current weights."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    finished: bool  # False: stopped by a signal, after a checkpoint
    scalars: dict[str, float]  # of the last evaluation
    seconds: float  # wall time with the preparation of data, over all resumed parts


class TrainingError(RuntimeError):
    """Training cannot continue; the message names stage and step."""


def step_generator(seed: int, rank: int, step: int, stream: int = _NOISE_STREAM) -> torch.Generator:
    """Generator of the noise of one step on one rank, a pure function of the arguments."""
    state = np.random.SeedSequence([seed, stream, rank, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def train(stage: Stage, config: StageConfig, lineage: dict[str, Any], rank: int = 0, world_size: int = 1) -> Outcome:
    """Run a stage to its last step, or until SIGINT / SIGTERM.

    Args:
        stage: What to train.
        config: Steps, cadence, folder, seed, and whether to resume.
        lineage: Facts of origin, stored with every checkpoint and with the finished weights.
        rank: Of this process. Streams and noise are already divided between ranks; the averaging of gradients would
            belong between `backward` and the clipping.
        world_size: Number of processes.

    Raises:
        TrainingError: the loss or a gradient is not finite.
        CheckpointError: `run.resume` is set and the newest checkpoint cannot be read or belongs to another run.
    """
    optim, cadence, out = config.optim, config.cadence, config.run.out
    started = time.monotonic()
    torch.set_num_threads(config.run.threads)
    torch.manual_seed(config.run.seed)
    trained = stage.build().to(config.run.device)
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(stage.param_groups(), optim)
    ema = Ema(trained, optim.ema_max_decay)
    stream = stage.stream(rank, world_size)
    validation = stage.validation_batch()
    step, seconds_before, scalars = 0, 0.0, {}

    checkpoints = out / "checkpoints"
    existing = list_checkpoints(checkpoints)
    if config.run.resume and existing:
        state = load_checkpoint(existing[-1])
        check_same_run(existing[-1], state["config"], config)
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        stream.load_state_dict(state["stream"])
        step, seconds_before, scalars = state["step"], state["seconds"], state["scalars"]

    def seconds() -> float:
        return seconds_before + time.monotonic() - started

    def save() -> None:
        state = {
            "stage": stage.name,
            "step": step,
            "seconds": seconds(),
            "scalars": scalars,
            "trained": trained.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.state_dict(),
            "stream": stream.state_dict(),
            "config": to_plain(config),
            "lineage": lineage,
        }
        save_checkpoint(checkpoints, step, state, cadence.keep_checkpoints)

    def evaluate() -> dict[str, float]:
        with averaged(ema, trained):
            result = stage.evaluate(validation, step_generator(config.run.seed, 0, 0, _EVALUATION_STREAM))
        report.evaluation(step, result.scalars, result.panels)
        return result.scalars

    with Reporter(out, stage.name, optim.steps, step) as report, stop_signals() as stopped:
        trained.train()
        while step < optim.steps:
            if stopped:
                save()
                report.note(f"{stopped[0]} at step {step}: checkpoint written, continue with --resume")
                return Outcome(step, False, scalars, seconds())
            rate = learning_rate(step, optim)
            for group in optimizer.param_groups:
                group["lr"] = rate
            stage.updates = step
            loss, parts = stage.loss(next(stream), step_generator(config.run.seed, rank, step))
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, optim.max_grad_norm)
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise TrainingError(
                    f"stage {stage.name}, step {step}: loss {loss.item()}, gradient norm {norm.item()}; "
                    f"the newest checkpoint is in {checkpoints}"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ema.update()
            step += 1
            if step % cadence.log_every == 0 or step == 1:
                logged = {"loss": loss.item(), **{name: float(value) for name, value in parts.items()}}
                report.scalars(step, {**logged, "lr": rate, "grad_norm": norm.item(), "seconds": seconds()})
            report.progress(step, loss.item())
            if step % cadence.evaluate_every == 0 or step == optim.steps:
                scalars = evaluate()
            if step % cadence.save_every == 0 or step == optim.steps:
                save()
        with averaged(ema, trained):
            stage.export(out, {**lineage, "steps": step, "seconds": round(seconds(), 1), "metrics": scalars})
    return Outcome(step, True, scalars, seconds())


@contextmanager
def averaged(ema: Ema, trained: nn.Module) -> Iterator[None]:
    """Evaluation mode with the averaged weights; restores mode and weights afterwards."""
    ema.swap()
    trained.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        trained.train()
        ema.swap()


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Yield the names of the stop signals received so far; a second one ends the process at once."""
    received: list[str] = []
    previous: dict[signal.Signals, Any] = {}

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, previous[signal.Signals(number)])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, remember)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
