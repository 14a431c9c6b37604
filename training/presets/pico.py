"""pico: the network of the tests, four shapes in six colours at 32 px."""

from pathlib import Path

from training.config.chain import RecipeConfig
from training.config.common import Cadence, Data, Optim, RenderWeights, RunOptions
from training.config.diffusion import DiffusionConfig
from training.config.recon import ReconConfig
from training.config.vae import VaeConfig

_RUNS = Path("runs/pico")

RECON = ReconConfig(
    preset="pico/recon",
    data=Data(objects=1152, batch_size=8, views=7),
    optim=Optim(steps=900, lr=2e-3, warmup_steps=50),
    run=RunOptions(out=_RUNS / "recon"),
)
VAE = VaeConfig(
    preset="pico/vae",
    data=Data(objects=1152, batch_size=4, views=6),
    optim=Optim(steps=2600, lr=1e-3, warmup_steps=50),
    weights=RenderWeights(image=2.0, ssim=0.1),
    render_weight=0.1,  # at 1 its noise slows down the colours of the grid
    rendered_objects=1,
    recon=_RUNS / "recon",
    run=RunOptions(out=_RUNS / "vae"),
    cache_grids=True,
)
DECODER = VaeConfig(
    preset="pico/decoder",
    data=Data(objects=1152, batch_size=4, views=7),
    optim=Optim(steps=700, lr=1e-3, warmup_steps=30),
    weights=RenderWeights(image=2.0, ssim=0.1),
    recon=_RUNS / "recon",
    vae=_RUNS / "vae",
    part="decoder",
    run=RunOptions(out=_RUNS / "decoder"),
    cache_grids=True,
)
TINY_DECODER = VaeConfig(
    preset="pico/tiny-decoder",
    data=Data(objects=1152, batch_size=4, views=7),
    optim=Optim(steps=700, lr=2e-3, warmup_steps=30),
    weights=RenderWeights(image=2.0, ssim=0.1),
    rendered_objects=2,
    recon=_RUNS / "recon",
    vae=_RUNS / "decoder",
    part="tiny",
    tiny_width=24,
    tiny_blocks=1,
    run=RunOptions(out=_RUNS / "tiny-decoder"),
    cache_grids=True,
)
DIFFUSION = DiffusionConfig(
    preset="pico/diffusion",
    data=Data(objects=2304, batch_size=16, views=4, pool_size=0),
    optim=Optim(steps=5000, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=200, schedule="cosine"),
    cadence=Cadence(evaluate_every=500, save_every=500),
    recon=_RUNS / "recon",
    vae=_RUNS / "vae",
    run=RunOptions(out=_RUNS / "diffusion"),
)
RECIPE = RecipeConfig(
    out=_RUNS,
    stages={"recon": RECON, "vae": VAE, "diffusion": DIFFUSION, "decoder": DECODER, "tiny-decoder": TINY_DECODER},
)
