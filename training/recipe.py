"""Training of all stages, each in its own folder, and of the bundle made from them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffsplat.bundle import Bundle, open_bundle
from training.assemble import bundle_runs
from training.checkpoint import FINISHED, MANIFEST, check_same_run, git_revision, list_checkpoints, read_finished
from training.config.chain import RecipeConfig
from training.config.common import StageConfig
from training.launch import by_main_process, check_device
from training.loop import Outcome, train
from training.stages import build_stage
from training.stages.common import dataset


class Interrupted(Exception):
    """A stop signal ended the run; a checkpoint was written."""


def run_stage(config: StageConfig) -> Outcome:
    """Train one stage into ``config.run.out``.

    Raises:
        ValueError: a field is out of range, the folder already holds a run, or an earlier stage is missing.
        Interrupted: stopped by a signal.
    """
    config.check()
    check_device(config.run.device)
    out = config.run.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"run.out = {out} is a file; a run needs a folder of its own")
    if not config.run.resume and ((out / FINISHED).exists() or list_checkpoints(out / "checkpoints")):
        raise ValueError(f"run.out = {out} already holds a run; continue it with resume, or choose another folder")
    stage = build_stage(config)
    if config.run.resume and (out / FINISHED / MANIFEST).is_file():
        if (done := finished_already(config, stage.name)) is not None:
            return done
        if not list_checkpoints(out / "checkpoints"):
            raise ValueError(f"run.out = {out} has finished and holds no checkpoint from which more steps could start")
    outcome = train(stage, config, lambda: stage_lineage(config))
    if not outcome.finished:
        raise Interrupted(f"{config.preset} stopped at step {outcome.step}")
    return outcome


def finished_already(config: StageConfig, stage: str) -> Outcome | None:
    """How the finished run in ``config.run.out`` ended, or None if this one is to make more steps.

    Raises:
        CheckpointError: what lies there is of another run, or cannot be continued.
    """
    out, optim = config.run.out, config.optim
    facts = read_finished(out)
    if optim.epochs == facts["config"]["optim"].get("epochs", 0) != 0:
        optim = dataclasses.replace(optim, steps=facts["steps"])
    elif optim.epochs:
        return None  # the number of steps is not known before the data is
    asked = dataclasses.replace(config, optim=optim)
    check_same_run(out / FINISHED / MANIFEST, {**facts, "step": facts["steps"]}, asked, stage, processes=1)
    if optim.steps > facts["steps"]:
        return None
    print(f"{out}: stage {stage} has finished already, after {facts['steps']} steps", flush=True)
    return Outcome(facts["steps"], True, facts["metrics"], facts["seconds"])


def run_recipe(recipe: RecipeConfig) -> Bundle:
    """Train all stages and write ``<out>/bundle``."""
    stages = recipe.placed()
    for config in stages.values():
        config.check()
    for config in stages.values():
        run_stage(config)
    return make_bundle({name: config.run.out for name, config in stages.items()}, recipe.out / "bundle")


def make_bundle(sources: Mapping[str, Path], out: Path) -> Bundle:
    """`bundle_runs` by the first of several processes; all return the bundle."""
    return by_main_process(lambda: bundle_runs(sources, out)) or open_bundle(out)


def stage_lineage(config: StageConfig) -> dict[str, Any]:
    """The origin of a stage's weights."""
    return {
        "preset": config.preset,
        "seed": config.run.seed,
        "data": dataset(config.data, config.backbone, validation=False).source.identity(),
        "revision": git_revision(),
        "torch": str(torch.__version__),  # a plain string, as checkpoints require
    }
