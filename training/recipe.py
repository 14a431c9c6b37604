"""Training of all stages, each in its own folder, and of the bundle made from them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle, write_bundle
from diffsplat.networks import network_builders
from training.checkpoint import FINISHED, MANIFEST, git_revision, list_checkpoints, load_finished, read_finished
from training.config.chain import RecipeConfig
from training.config.common import StageConfig, to_plain
from training.loop import Outcome, train
from training.stages import build_stage
from training.stages.diffusion import TOKENIZER_FILE

_LINEAGE = (
    "preset", "seed", "data", "revision", "torch", "steps", "seconds", "metrics", "latent_scale", "latent_channels"
)  # fmt: skip
STAGE_FOLDERS = ("recon", "vae", "diffusion", "decoder")


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
    for config in stage_configs(recipe):
        config.check()
    for config in stage_configs(recipe):
        run_stage(config)
    return bundle_runs({name: recipe.out / name for name in STAGE_FOLDERS}, recipe.out / "bundle")


def stage_configs(recipe: RecipeConfig) -> tuple[StageConfig, ...]:
    """The recipe's stages, each with its folder below the recipe's."""
    recon, vae = recipe.out / "recon", recipe.out / "vae"

    def placed(config: Any, out: Path, **parents: Path) -> Any:
        run = dataclasses.replace(config.run, out=out, resume=recipe.resume or config.run.resume)
        return dataclasses.replace(config, run=run, **parents)

    return (
        placed(recipe.recon, recon),
        placed(recipe.vae, vae, recon=recon),
        placed(recipe.diffusion, recipe.out / "diffusion", recon=recon, vae=vae),
        placed(recipe.decoder, recipe.out / "decoder", recon=recon, vae=vae),
    )


def bundle_runs(runs: Mapping[str, Path], target: Path) -> Bundle:
    """Write the finished weights of all stages into one bundle.

    Args:
        runs: Folder of each of `STAGE_FOLDERS`.
        target: The bundle.

    Raises:
        CheckpointError: a stage is not finished or damaged.
        ValueError: the stages were not trained on each other.
    """
    facts = {name: read_finished(out) for name, out in runs.items()}
    latents = facts["diffusion"]["parents"]["vae"]
    if not latents == facts["vae"]["files"] == facts["decoder"]["vae"]:
        raise ValueError(
            f"{runs['diffusion']} and {runs['decoder']} must both be trained on the latents of {runs['vae']}"
        )
    spec = BackboneSpec.from_dict(facts["diffusion"]["spec"])
    sources = {"text_encoder": "diffusion", "denoiser": "diffusion", "gsvae": "decoder", "gsrecon": "recon"}
    networks = {
        name: load_finished(runs[sources[name]], name, build()) for name, build in network_builders(spec).items()
    }
    tokenizer_json = (runs["diffusion"] / FINISHED / TOKENIZER_FILE).read_text()
    lineage = {
        "stages": {name: {key: stage[key] for key in _LINEAGE if key in stage} for name, stage in facts.items()},
        "revision": git_revision(),
        "seconds": round(sum(stage["seconds"] for stage in facts.values()), 1),
    }
    return write_bundle(target, spec, networks, [tokenizer_json], lineage)


def stage_lineage(config: StageConfig) -> dict[str, Any]:
    """The origin of a stage's weights."""
    return {
        "preset": config.preset,
        "seed": config.run.seed,
        "data": {
            "kind": "procedural",
            "grammar": config.data.grammar,
            "seed": config.data.seed,
            "objects": config.data.objects,
        },
        "config": {key: value for key, value in to_plain(config).items() if key != "run"},
        "revision": git_revision(),
        "torch": str(torch.__version__),  # a plain string, as checkpoints require
    }
