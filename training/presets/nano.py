"""nano: the network of the demo, the rich objects at 64 px.

Two cores do all of it in about four hours. `REFINEMENT` goes on from the shipped bundle, on objects not seen before.

The shipped bundle was made by this chain, each run starting from the one before (its lineage names the last ones):

    recon      1,400 steps; 1,000 more with lr 1.2e-3                                        25.7 dB, 26.4 dB
    vae        3,000 steps; 4,600 with lr 7e-4, render_weight 0.3                            22.7 dB, 24.1 dB
               decoder alone, 800 steps; 3,400 with lr 5e-4, render_weight 0.6 (2 objects)   24.5 dB, 24.9 dB
    diffusion  11,000 steps; error on unseen objects after 2, 4, 6, 8, 10, 11 thousand steps
               0.323, 0.257, 0.230, 0.208, 0.199, 0.197
    decoder    450 steps                                                                     25.0 dB

(dB: novel views of 24 unseen objects.)
"""

import dataclasses
from pathlib import Path

from training.config.chain import RecipeConfig, RefineConfig
from training.config.common import Cadence, Data, Optim, RenderWeights, RunOptions
from training.config.diffusion import DiffusionConfig, RenderingOptions
from training.config.image_vae import ImageVaeConfig
from training.config.recon import ReconConfig
from training.config.vae import VaeConfig

_RUNS = Path("runs/nano")
_OBJECTS = Data(grammar="rich", objects=3000, validation_objects=24)  # for the stages that render

RECON = ReconConfig(
    preset="nano/recon",
    backbone="nano",
    data=dataclasses.replace(_OBJECTS, batch_size=6, views=6),
    optim=Optim(steps=2400, lr=2e-3, warmup_steps=50),
    position_weight=10.0,
    colour_weight=1.0,
    run=RunOptions(out=_RUNS / "recon"),
)

VAE = VaeConfig(
    preset="nano/vae",
    backbone="nano",
    data=dataclasses.replace(_OBJECTS, batch_size=4, views=6),
    optim=Optim(steps=4000, lr=1e-3, warmup_steps=50, precision="bf16"),
    weights=RenderWeights(image=2.0, ssim=0.1),
    first_weights="average",
    render_weight=0.1,
    rendered_objects=1,
    recon=_RUNS / "recon",
    run=RunOptions(out=_RUNS / "vae"),
    cache_grids=True,
)
DECODER = VaeConfig(
    preset="nano/decoder",
    backbone="nano",
    data=dataclasses.replace(_OBJECTS, batch_size=4, views=7),
    optim=Optim(steps=900, lr=8e-4, warmup_steps=30, precision="bf16"),
    weights=RenderWeights(image=2.0, ssim=0.1),
    recon=_RUNS / "recon",
    vae=_RUNS / "vae",
    part="decoder",
    run=RunOptions(out=_RUNS / "decoder"),
    cache_grids=True,
)
TINY_DECODER = VaeConfig(
    preset="nano/tiny-decoder",
    backbone="nano",
    data=dataclasses.replace(_OBJECTS, batch_size=4, views=7),
    optim=Optim(steps=2000, lr=2e-3, warmup_steps=50, precision="bf16"),
    weights=RenderWeights(image=2.0, ssim=0.1),
    rendered_objects=2,
    recon=_RUNS / "recon",
    vae=_RUNS / "decoder",
    part="tiny",
    tiny_width=32,
    tiny_blocks=1,
    run=RunOptions(out=_RUNS / "tiny-decoder"),
    cache_grids=True,
)
DIFFUSION = DiffusionConfig(
    preset="nano/diffusion",
    backbone="nano",
    data=Data(grammar="rich", objects=10000, validation_objects=24, batch_size=16, views=4, pool_size=0),
    optim=Optim(
        steps=20000, lr=8e-4, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=300, schedule="cosine",
        precision="bf16",
    ),
    cadence=Cadence(evaluate_every=2000, save_every=500),
    recon=_RUNS / "recon",
    vae=_RUNS / "vae",
    run=RunOptions(out=_RUNS / "diffusion"),
)  # fmt: skip
DIFFUSION_RENDER = dataclasses.replace(
    DIFFUSION,
    preset="nano/diffusion-render",
    data=dataclasses.replace(DIFFUSION.data, objects=3000, batch_size=8, views=6, pool_size=2),
    optim=dataclasses.replace(DIFFUSION.optim, steps=2000, lr=2e-4),
    vae=_RUNS / "tiny-decoder",  # the same latents, and a tiny decoder
    start=_RUNS / "diffusion",
    rendering=RenderingOptions(
        probability=1.0, weights=RenderWeights(image=2.0, ssim=0.1), min_snr_gamma=1.0, render_weight=0.5
    ),
    run=RunOptions(out=_RUNS / "diffusion-render"),
)
IMAGE_VAE = ImageVaeConfig(
    preset="nano/image-vae",
    backbone="nano",
    data=dataclasses.replace(_OBJECTS, batch_size=4, views=4, pool_size=0),
    optim=Optim(steps=3000, lr=1e-3, warmup_steps=50),
    vae=_RUNS / "vae",
    run=RunOptions(out=_RUNS / "image-vae"),
)
DIFFUSION_IMAGE = dataclasses.replace(
    DIFFUSION,
    preset="nano/diffusion-image",
    backbone="nano_image",
    start=_RUNS / "diffusion",
    base=_RUNS / "image-vae",
    run=RunOptions(out=_RUNS / "diffusion-image"),
)

RECIPE = RecipeConfig(
    out=_RUNS,
    stages={"recon": RECON, "vae": VAE, "diffusion": DIFFUSION, "decoder": DECODER, "tiny-decoder": TINY_DECODER},
)
REFINEMENT = RefineConfig(
    bundle=Path("bundles/nano"),
    out=Path("runs/nano-refined"),
    stage=dataclasses.replace(
        DIFFUSION,
        preset="nano-refined/diffusion",
        data=dataclasses.replace(DIFFUSION.data, seed=1),
        optim=dataclasses.replace(DIFFUSION.optim, lr=4e-4, warmup_steps=100),
    ),
)
