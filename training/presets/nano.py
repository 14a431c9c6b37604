"""nano: the network of the demo, the rich objects at 64 px.

`REFINEMENT` goes on from the shipped bundle, on objects not seen before. The shipped bundle was made by this chain,
each run starting from the one before; its lineage names the last one of each stage. The first ones had 16 latent
channels and thinner splats (commit 1f2c84f and before).

    recon      1,400 steps; 1,000 more with lr 1.2e-3; 1,600 on new objects, with `alive_weight`, views of
               128 px and the present smallest scale                                         26.6 dB
    vae        16 latent channels on the GSRecon of the 2,400 steps: 11,800 steps; 32 channels on the present
               one: 4,000; the 8 of them that vary: 240                                      25.6 dB
    diffusion  on the first latents 11,000 steps of 10,000 objects; on the present ones 4,000 of 20,000 with
               lr 6e-4, error on unseen objects after 1, 2, 3, 4 thousand                    0.298, 0.276, 0.268, 0.259

(dB: novel views of 24 unseen objects.)

The presets below train the same networks from random weights, in fewer and longer runs; they have not been run to their
end yet.
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
_FRESH = Data(  # objects that never come twice, rendered at twice the size of their grids
    grammar="rich",
    objects=200_000,
    validation_objects=24,
    views=8,
    pool_size=30,
    first_views=(0, 1, 2, 3, 4, 5, 27, 28, 29),  # whose picks hold every view of both rings
    store_views=False,
    target_size=128,
)
_OBJECTS = Data(grammar="rich", objects=3000, validation_objects=24)

RECON = ReconConfig(
    preset="nano/recon",
    backbone="nano",
    data=dataclasses.replace(_FRESH, batch_size=3),
    optim=Optim(steps=4000, lr=2e-3, warmup_steps=50),
    weights=RenderWeights(image=4.0, mask=2.0),
    position_weight=10.0,
    colour_weight=1.0,
    alive_weight=0.02,
    run=RunOptions(out=_RUNS / "recon"),
)

VAE = VaeConfig(
    preset="nano/vae",
    backbone="nano",
    data=dataclasses.replace(_FRESH, batch_size=2),
    optim=Optim(steps=8000, lr=1e-3, warmup_steps=50),
    weights=RenderWeights(image=4.0, mask=2.0, ssim=0.1),
    first_weights="average",
    render_weight=1.0,
    rendered_objects=2,
    recon=_RUNS / "recon",
    run=RunOptions(out=_RUNS / "vae"),
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
    data=Data(
        grammar="rich",
        objects=20_000,
        validation_objects=24,
        batch_size=16,
        views=4,
        pool_size=0,
        first_views=(0, 2, 22, 27),  # objects face these within 60 degrees
        store_views=False,
    ),
    views_each=1,
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
