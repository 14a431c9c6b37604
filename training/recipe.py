"""Training of all stages, each in its own folder, and of the bundle made from them."""

import json
from typing import Any

import torch

from diffsplat.bundle import Bundle
from training.assemble import bundle_runs
from training.checkpoint import FINISHED, MANIFEST, git_revision, list_checkpoints, read_finished
from training.config.chain import RecipeConfig
from training.config.common import StageConfig, to_plain
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
    out = config.run.out
    if not config.run.resume and ((out / FINISHED).exists() or list_checkpoints(out / "checkpoints")):
        raise ValueError(f"run.out = {out} already holds a run; continue it with resume, or choose another folder")
    if config.run.resume and (out / FINISHED / MANIFEST).is_file():
        facts = read_finished(out)
        return Outcome(facts["steps"], True, facts["metrics"], facts["seconds"])
    stage = build_stage(config)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(to_plain(config), indent=2) + "\n")
    outcome = train(stage, config, stage_lineage(config))
    if not outcome.finished:
        raise Interrupted(f"{config.preset} stopped at step {outcome.step}")
    return outcome


def run_recipe(recipe: RecipeConfig) -> Bundle:
    """Train all stages and write ``<out>/bundle``."""
    stages = recipe.placed()
    for config in stages.values():
        config.check()
    for config in stages.values():
        run_stage(config)
    return bundle_runs({name: config.run.out for name, config in stages.items()}, recipe.out / "bundle")


def stage_lineage(config: StageConfig) -> dict[str, Any]:
    """The origin of a stage's weights."""
    return {
        "preset": config.preset,
        "seed": config.run.seed,
        "data": dataset(config.data, config.backbone, validation=False).source.identity(),
        "config": {key: value for key, value in to_plain(config).items() if key != "run"},
        "revision": git_revision(),
        "torch": str(torch.__version__),  # a plain string, as checkpoints require
    }
