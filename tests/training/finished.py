"""Finished runs of the first stages with random weights, and tiny diffusion runs on them, for tests."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import torch

from diffsplat.backbones import BackboneSpec
from diffsplat.splats.gsrecon import build_gsrecon
from diffsplat.splats.gsvae import build_gsvae
from training.checkpoint import read_finished, save_finished
from training.config.common import Cadence, Data, Optim, RunOptions
from training.config.diffusion import DiffusionConfig

FAMILY_NAMES = ("sd15", "sd21", "sdxl", "pixart_alpha", "pixart_sigma", "sd3", "sd35")
DIFFUSION_STEPS = 3
TINY_DECODER = {"num_blocks": [1, 1, 1], "block_out_channels": [8, 8, 8]}


class Parents(NamedTuple):
    """Folders of finished runs."""

    recon: Path
    vae: Path


def write_parents(folder: Path, spec: BackboneSpec) -> Parents:
    """Finished runs of GSRecon and of a GSVAE with a tiny decoder, whose latents have unit size."""
    spec = dataclasses.replace(spec, gsvae={**spec.gsvae, "tiny_decoder": TINY_DECODER})
    scale = {name: spec.gsvae.get(name) or 0.0 for name in ("scaling_factor", "shift_factor")}
    parents = Parents(folder / "recon", folder / "vae")
    for path in parents:
        path.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_finished(parents.recon, {"gsrecon": build_gsrecon(spec)}, {"steps": 0}, {})
        facts = {
            "steps": 0, "latent_scale": scale, "tiny_decoder": TINY_DECODER,
            "recon": read_finished(parents.recon)["files"],
        }  # fmt: skip
        gsvae = build_gsvae(spec)
        assert gsvae.tiny_decoder is not None
        gsvae.tiny_decoder.layers[-1].bias.data.fill_(0.5)  # it doubles this and subtracts 1: visible splats
        save_finished(parents.vae, {"gsvae": gsvae}, facts, {})
    return parents


def tiny_diffusion(spec: BackboneSpec, parents: Parents, base: Path, out: Path) -> DiffusionConfig:
    """A run of a few steps on few objects, from a base model with its frozen text encoders."""
    return DiffusionConfig(
        preset=spec.name,
        backbone=spec.name,
        data=Data(objects=4, validation_objects=1, batch_size=2, views=5, pool_size=1, first_views=(0,)),
        optim=Optim(steps=DIFFUSION_STEPS, lr=1e-3, warmup_steps=0),
        cadence=Cadence(log_every=1, evaluate_every=DIFFUSION_STEPS, save_every=2),
        run=RunOptions(out=out, threads=1),
        recon=parents.recon,
        vae=parents.vae,
        start=base,
        text="frozen",
        evaluation_steps=1,
    )
