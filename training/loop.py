"""The training loop. It does not depend on splats: a `Stage` defines networks, data, loss and evaluation.

One update: batches -> losses -> gradients -> clip -> AdamW at the step's learning rate -> EMA. All randomness comes
from (seed, step, place of the batch in the global one), and the data stream has a cursor. So a resumed run makes the
same updates exactly, and two processes with one batch each make those of one process that accumulates two.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.checkpoint import check_same_run, newest_checkpoint, save_checkpoint, writing
from training.config.common import StageConfig, to_plain
from training.data.record import BrokenRecord
from training.ema import Ema, averaged
from training.launch import open_accelerator, start_tracker
from training.optim import (
    build_optimizer,
    enable_gradient_checkpointing,
    freeze_all_but,
    learning_rate,
    scaled_groups,
    set_learning_rate,
    updates_per_epoch,
)
from training.report import Reporter
from training.signals import Stopped, StopSignals
from training.stage import Stage

Lineage = dict[str, Any] | Callable[[], dict[str, Any]]  # a function where it takes time to find out

_NOISE_STREAM, _EVALUATION_STREAM = 31, 32


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    finished: bool  # False: stopped by a signal, after a checkpoint
    scalars: dict[str, float]  # of the last evaluation
    seconds: float  # wall time with the preparation of data, over all resumed parts


class TrainingError(RuntimeError):
    """Training cannot continue; the message names stage and step."""


def step_generator(seed: int, place: int, step: int, stream: int = _NOISE_STREAM) -> torch.Generator:
    """Generator of the noise of one batch, a pure function of the arguments.

    Args:
        seed: Of the run.
        place: Of the batch in the global one: ``accumulated batches before it * processes + rank``.
        step: Updates made before.
        stream: Kind of noise.
    """
    state = np.random.SeedSequence([seed, stream, place, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def train(stage: Stage, config: StageConfig, lineage: Lineage) -> Outcome:
    """Run a stage to its last step, or until SIGINT / SIGTERM, on the processes that accelerate started.

    Args:
        stage: What to train.
        config: Steps, cadence, folder, seed, and whether to resume.
        lineage: Facts of origin, stored with every checkpoint and with the finished weights.

    Raises:
        TrainingError: too many losses or gradients are not finite.
        CheckpointError: `run.resume` is set and no checkpoint can be read or they belong to another run; or a file
            cannot be written.
        ValueError: device, precision, tracker or a name of `optim` does not exist.
    """
    started = time.monotonic()
    with StopSignals() as signals:
        try:
            signals.at_once = True
            run = Run(stage, config, lineage, started)
            signals.at_once = False
        except Stopped as stopped:
            print(f"{stage.name}: {stopped} while networks and data were prepared; what was cached stays", flush=True)
            return Outcome(0, False, {}, time.monotonic() - started)
        return run.to_the_end(signals)


class Run:
    """State of a run: networks, optimiser, averages, cursor and counters."""

    def __init__(self, stage: Stage, config: StageConfig, lineage: Lineage, started: float) -> None:
        """Prepare networks and data, and restore the newest checkpoint if the run is to be continued."""
        self.accelerator = open_accelerator(config)
        self.stage, self.started = stage, started
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.is_main = self.accelerator.is_main_process
        stage.device = self.accelerator.device
        optim = config.optim
        torch.set_num_threads(config.run.threads)
        torch.manual_seed(config.run.seed)
        self.trained = stage.build().to(stage.device)
        freeze_all_but(self.trained, optim.trainable)
        if optim.gradient_checkpointing:
            enable_gradient_checkpointing(self.trained)
        self.parameters = [parameter for parameter in self.trained.parameters() if parameter.requires_grad]
        self.ema = Ema.of(self.trained, optim) if optim.ema else None
        groups = scaled_groups(stage.param_groups(), self.trained, optim.lr_multipliers)
        self.loss, self.optimizer = self.accelerator.prepare(_Loss(stage, self.trained), build_optimizer(groups, optim))
        with writing(config.run.out):
            config.run.out.mkdir(parents=True, exist_ok=True)
        with self.accelerator.main_process_first():  # what it caches on disk, the others read
            self.stream = stage.stream(self.rank, self.processes)
            self.validation = stage.validation_batch()
        if optim.epochs:
            steps = optim.epochs * updates_per_epoch(self.stream.batches_per_epoch, optim.accumulation)
            config = dataclasses.replace(config, optim=dataclasses.replace(optim, steps=steps))
            config.check()
        self.config, self.optim = config, config.optim
        origin = {key: value for key, value in to_plain(config).items() if key != "run"}
        self.lineage = {**(lineage() if callable(lineage) else lineage), "stage": stage.name, "config": origin}
        self.checkpoints = config.run.out / "checkpoints"
        self.step, self.skipped, self.seconds_before = 0, 0, 0.0
        self.scalars: dict[str, float] = {}
        self.best = -math.inf
        if config.run.resume and (newest := newest_checkpoint(self.checkpoints)) is not None:
            self._restore(*newest)
        if self.is_main:
            path = config.run.out / "config.json"
            with writing(path):
                path.write_text(json.dumps(to_plain(config), indent=2) + "\n")

    def to_the_end(self, signals: StopSignals) -> Outcome:
        """Update until the last step or a stop signal, then export."""
        config, out = self.config, self.config.run.out
        start_tracker(self.accelerator, config)
        with Reporter(out, self.stage.name, self.optim.steps, self.step, self.is_main) as self.report:
            self.trained.train()
            stopped = bool(signals.received)
            while self.step < self.optim.steps:
                if stopped:
                    self._save()
                    name = signals.received or "stop signal of another process"
                    self.report.note(f"{name} at step {self.step}: checkpoint written, continue with --resume")
                    return Outcome(self.step, False, self.scalars, self._seconds())
                cursor = self.stream.state_dict()
                try:
                    stopped = self._update(signals)
                except BrokenRecord:
                    if self.processes == 1:  # the others would wait for one that fails
                        self.stream.load_state_dict(cursor)
                        self._save()
                    raise
                last = self.step == self.optim.steps
                evaluated = last or self.step % config.cadence.evaluate_every == 0
                best = evaluated and self._evaluate()
                if best or last or self.step % config.cadence.save_every == 0:
                    self._save(best)
            if self.is_main:
                facts = {"steps": self.step, "seconds": round(self._seconds(), 1), "metrics": self.scalars}
                with averaged(self.ema, self.trained):
                    self.stage.export(out, {**self.lineage, **facts})
        self.accelerator.wait_for_everyone()  # the next stage reads what was exported
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return Outcome(self.step, True, self.scalars, self._seconds())

    def _update(self, signals: StopSignals) -> bool:
        """Make one update, or skip it; returns whether a process was told to stop."""
        rate = learning_rate(self.step, self.optim)
        set_learning_rate(self.optimizer, rate)
        sums: dict[str, Tensor] = {}
        for batch in range(self.optim.accumulation):
            generator = step_generator(self.config.run.seed, batch * self.processes + self.rank, self.step)
            torch.manual_seed(generator.initial_seed())  # of layers such as dropout
            self.stage.updates = self.step
            with self.accelerator.accumulate(self.loss):
                loss, parts = self.loss(next(self.stream), generator)
                self.accelerator.backward(loss)
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.optim.max_grad_norm).item()
        share = 1.0 / (self.optim.accumulation * self.processes)
        values = torch.stack([*sums.values(), torch.tensor(float(bool(signals.received)), device=self.stage.device)])
        *means, stopped = self.accelerator.reduce(values, "sum").tolist()
        logged = {name: share * value for name, value in zip(sums, means, strict=True)}
        if self._step_optimizer(logged["loss"], norm) and self.ema is not None:
            self.ema.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step % self.config.cadence.log_every == 0 or self.step == 1:
            self._log({**logged, "lr": rate, "grad_norm": norm, "seconds": self._seconds()})
        self.report.progress(self.step, logged["loss"])
        return stopped > 0

    def _step_optimizer(self, loss: float, norm: float) -> bool:
        """Step, unless loss or gradient is not finite; returns whether the weights changed."""
        finite, scaler = math.isfinite(loss) and math.isfinite(norm), self.accelerator.scaler
        if finite or scaler is not None:  # a scaler must see the overflow, which it skips on its own
            self.optimizer.step()
        if finite:
            return True
        if scaler is not None and math.isfinite(loss) and scaler.get_scale() >= 1.0:
            return False  # an overflow of fp16, after which the scaler takes a smaller factor
        self.skipped += 1
        what = f"loss {loss}, gradient norm {norm}"
        if self.skipped > self.optim.max_skipped:
            raise TrainingError(
                f"stage {self.stage.name}, step {self.step}: {what}; the newest checkpoint is in {self.checkpoints}; "
                f"optim.max_skipped = {self.optim.max_skipped} such updates may be skipped"
            )
        self.report.skipped(self.step, what, f"{self.skipped} of at most {self.optim.max_skipped}")
        return False

    def _evaluate(self) -> bool:
        """Evaluate the averaged weights; returns whether they are the best so far by the stage's measure."""
        with averaged(self.ema, self.trained):
            generator = step_generator(self.config.run.seed, 0, 0, _EVALUATION_STREAM)
            result = self.stage.evaluate(self.validation, generator)
        self.scalars = result.scalars
        self.report.evaluation(self.step, result.scalars, result.panels)
        self.accelerator.log({f"validation/{name}": value for name, value in result.scalars.items()}, self.step)
        measure = self.config.best
        if not measure:
            return False
        score = -result.scalars[measure[1:]] if measure[0] == "-" else result.scalars[measure]
        better = score > self.best
        self.best = max(score, self.best)
        return better

    def _log(self, values: dict[str, float]) -> None:
        self.report.scalars(self.step, values)
        self.accelerator.log(values, self.step)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _save(self, best: bool = False) -> None:
        if not self.is_main:
            return
        scaler = self.accelerator.scaler
        state = {
            "stage": self.stage.name,
            "step": self.step,
            "skipped": self.skipped,
            "seconds": self._seconds(),
            "scalars": self.scalars,
            "best": self.best,
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "stream": self.stream.state_dict(),
            "processes": self.processes,
            "config": to_plain(self.config),
            "lineage": self.lineage,
        }
        save_checkpoint(self.checkpoints, self.step, state, self.config.cadence.keep_checkpoints, best)

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        check_same_run(path, state, self.config, self.stage.name, self.processes)
        self.trained.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.stream.load_state_dict(state["stream"])
        self.step, self.skipped, self.best = state["step"], state["skipped"], state["best"]
        self.seconds_before, self.scalars = state["seconds"], state["scalars"]


class _Loss(nn.Module):
    """A stage's loss as a module, since data-parallel wrappers act on a module's forward pass."""

    def __init__(self, stage: Stage, trained: nn.Module) -> None:
        super().__init__()
        self.trained = trained
        self._stage = stage

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """`Stage.loss`."""
        return self._stage.loss(batch, generator)
