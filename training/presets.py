"""Every preset by name. A preset is a config; what the command line does not override stands here."""

from pathlib import Path

from training.config import (
    Cadence,
    Data,
    DiffusionConfig,
    Optim,
    RecipeConfig,
    ReconConfig,
    RenderWeights,
    RunOptions,
    StageConfig,
    VaeConfig,
)

_PICO = Path("runs/pico")

PICO_RECON = ReconConfig(
    preset="pico/recon",
    data=Data(objects=1152, batch_size=8, views=7),
    optim=Optim(steps=900, lr=2e-3, warmup_steps=50),
    run=RunOptions(out=_PICO / "recon"),
)
PICO_VAE = VaeConfig(
    preset="pico/vae",
    data=Data(objects=1152, batch_size=4, views=6),
    optim=Optim(steps=2600, lr=1e-3, warmup_steps=50),
    weights=RenderWeights(image=2.0, ssim=0.1),
    render_weight=0.1,  # at 1 its noise holds back the colours of the grid
    rendered_objects=1,
    recon=_PICO / "recon",
    run=RunOptions(out=_PICO / "vae"),
)
PICO_DECODER = VaeConfig(
    preset="pico/decoder",
    data=Data(objects=1152, batch_size=4, views=7),
    optim=Optim(steps=700, lr=1e-3, warmup_steps=30),
    weights=RenderWeights(image=2.0, ssim=0.1),
    recon=_PICO / "recon",
    vae=_PICO / "vae",
    part="decoder",
    run=RunOptions(out=_PICO / "decoder"),
)
PICO_DIFFUSION = DiffusionConfig(
    preset="pico/diffusion",
    data=Data(objects=2304, batch_size=16, views=4, pool_size=0),
    optim=Optim(steps=5000, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=200, schedule="cosine"),
    cadence=Cadence(evaluate_every=500, save_every=500),
    recon=_PICO / "recon",
    vae=_PICO / "vae",
    run=RunOptions(out=_PICO / "diffusion"),
)

STAGES: dict[str, tuple[str, StageConfig]] = {
    "pico/recon": ("reconstruction: images of an object -> grid of Gaussians", PICO_RECON),
    "pico/vae": ("autoencoder: grid of Gaussians <-> latents", PICO_VAE),
    "pico/decoder": ("autoencoder: its decoder again, now for what is rendered; latents stay", PICO_DECODER),
    "pico/diffusion": ("denoiser and text encoder on cached latents", PICO_DIFFUSION),
}
RECIPES: dict[str, tuple[str, RecipeConfig]] = {
    "pico": (
        "the whole chain recon -> vae -> diffusion -> decoder -> bundle, about half an hour on two cores",
        RecipeConfig(out=_PICO, recon=PICO_RECON, vae=PICO_VAE, decoder=PICO_DECODER, diffusion=PICO_DIFFUSION),
    ),
}
