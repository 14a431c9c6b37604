"""nano_next: nano trained anew, on objects that are never seen twice, rendered at twice the size of its grids.

What differs from nano: no splat is thinner than 0.4 pixels, GSRecon's solid pixels keep a splat each, rows of two or
three objects and white ones, sizes that are said, more first views, and twice as many latent channels. Every stage goes
on from the one of `bundles/nano`.

Stages that are done lie in `bundles/nano-next` as finished runs, which replace the folders below `runs/nano_next` on
the command line, as in

    python -m training nano_next/vae --recon bundles/nano-next/recon
"""

import dataclasses
from pathlib import Path

from training.config.chain import RecipeConfig
from training.config.common import Cadence, Data, Optim, RenderWeights, RunOptions
from training.config.recon import ReconConfig
from training.config.vae import VaeConfig
from training.presets import nano

_RUNS = Path("runs/nano_next")
_START = Path("bundles/nano")
_FRESH = Data(
    grammar="rich",
    objects=200_000,
    validation_objects=24,
    views=8,
    pool_size=30,
    first_views=(0, 1, 2, 3, 4, 5, 27, 28, 29),  # whose picks hold every view of both rings
    store_views=False,
    target_size=128,
)
_CADENCE = Cadence(evaluate_every=200, save_every=100)

RECON = ReconConfig(
    preset="nano_next/recon",
    backbone="nano_next",
    data=dataclasses.replace(_FRESH, batch_size=3),
    optim=Optim(steps=1600, lr=8e-4, warmup_steps=50),
    cadence=_CADENCE,
    weights=RenderWeights(image=4.0, mask=2.0),
    position_weight=10.0,
    colour_weight=1.0,
    alive_weight=0.02,
    start=_START,
    run=RunOptions(out=_RUNS / "recon", threads=1),
)
VAE = VaeConfig(
    preset="nano_next/vae",
    backbone="nano_next",
    data=dataclasses.replace(_FRESH, batch_size=2),
    optim=Optim(steps=4000, lr=6e-4, warmup_steps=30),
    cadence=_CADENCE,
    weights=RenderWeights(image=4.0, mask=2.0, ssim=0.1),
    render_weight=1.0,
    rendered_objects=2,
    recon=_RUNS / "recon",
    vae=_START,
    adapt=True,
    run=RunOptions(out=_RUNS / "vae", threads=1),
)
DIFFUSION = dataclasses.replace(
    nano.DIFFUSION,
    preset="nano_next/diffusion",
    backbone="nano_next",
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
    recon=_RUNS / "recon",
    vae=_RUNS / "vae",
    start=_START,
    adapt=True,
    views_each=1,
    run=RunOptions(out=_RUNS / "diffusion", threads=1),
)

RECIPE = RecipeConfig(out=_RUNS, stages={"recon": RECON, "vae": VAE, "diffusion": DIFFUSION})
