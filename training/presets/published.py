"""The published runs: GSRecon, GSVAE of three base models with their tiny decoders, and the denoisers.

Hyper-parameters are those of the published commands and configs: batches are per process, of 8 processes. Folders of
weights and data are examples, and so are the numbers of objects that `steps` belongs to: 265,232 for GSRecon and
GSVAE, 83,296 for denoisers; `epochs` decides. Where ours differs on purpose: docs/training.md.
"""

from pathlib import Path
from typing import NamedTuple

from training.config.common import Cadence, Data, Optim, RenderWeights, RunOptions
from training.config.diffusion import DiffusionConfig, RenderingOptions
from training.config.objective import ObjectiveOptions
from training.config.recon import ReconConfig
from training.config.vae import VaeConfig

_RUNS, _MODELS = Path("runs"), Path("models")
_CADENCE = Cadence(log_every=1, evaluate_every=1000, save_every=2000)
_DATA = Data(source="data/gobjaverse", objects=0, validation_objects=16, views=8, first_views=())
_LOOKS = RenderWeights(perceptual="auto")  # LPIPS with weight 1 where its weights are, otherwise SSIM
_SPLATS = Optim(
    steps=124_320, epochs=30, lr=4e-4, betas=(0.9, 0.95), weight_decay=0.05, warmup_steps=1000, schedule="cosine",
    precision="bf16", ema=False,
)  # fmt: skip


def _data(batch_size: int) -> Data:
    return Data(**{**vars(_DATA), "batch_size": batch_size})


def _optim(base: Optim, **changes: object) -> Optim:
    return Optim(**{**vars(base), **changes})  # type: ignore[arg-type]


GSRECON = ReconConfig(
    preset="gsrecon",
    backbone="sd15",  # all published backbones have the same GSRecon
    data=_data(8),
    optim=_optim(_SPLATS, gradient_checkpointing=True),
    cadence=_CADENCE,
    weights=_LOOKS,
    position_weight=0.0,
    opacity_weight=0.0,
    run=RunOptions(out=_RUNS / "gsrecon"),
)


class _Autoencoder(NamedTuple):
    preset: str
    backbone: str
    base: str  # the base model's folder, or its autoencoder's
    tiny_base: str


AUTOENCODERS = (
    _Autoencoder("gsvae", "sd15", "stable-diffusion-v1-5", "taesd"),
    _Autoencoder("gsvae-sdxl-fp16", "sdxl", "sdxl-vae-fp16-fix", "taesdxl"),
    _Autoencoder("gsvae-sd3", "sd35", "stable-diffusion-3.5-medium", "taesd3"),
)


def _gsvae(autoencoder: _Autoencoder) -> VaeConfig:
    return VaeConfig(
        preset=autoencoder.preset,
        backbone=autoencoder.backbone,
        data=_data(2),
        optim=_optim(_SPLATS, accumulation=4),
        cadence=_CADENCE,
        weights=_LOOKS,
        kl_weight=1e-7,
        recon=_RUNS / "gsrecon",
        base=_MODELS / autoencoder.base,
        run=RunOptions(out=_RUNS / autoencoder.preset),
    )


def _tiny(autoencoder: _Autoencoder) -> VaeConfig:
    return VaeConfig(
        preset=f"{autoencoder.preset}-tiny",
        backbone=autoencoder.backbone,
        data=_data(8),
        optim=_SPLATS,
        cadence=_CADENCE,
        weights=_LOOKS,
        recon=_RUNS / "gsrecon",
        vae=_RUNS / autoencoder.preset,
        part="tiny",
        tiny_base=_MODELS / autoencoder.tiny_base,
        run=RunOptions(out=_RUNS / f"{autoencoder.preset}-tiny"),
    )


class _Denoiser(NamedTuple):
    option: str  # the published name
    backbone: str
    base: str
    autoencoder: str
    batch_size: int  # per process; with `accumulation` and 8 processes 128 objects
    accumulation: int
    in_readme: bool = True  # otherwise by a published config alone
    render_snr_gamma: float = 0.0


DENOISERS = (
    _Denoiser("sd15", "sd15", "stable-diffusion-v1-5", "gsvae", 8, 2),
    _Denoiser("pas", "pixart_sigma", "pixart-sigma", "gsvae-sdxl-fp16", 8, 2, render_snr_gamma=1.0),
    _Denoiser("sd35m", "sd35", "stable-diffusion-3.5-medium", "gsvae-sd3", 2, 8),
    _Denoiser("sd21", "sd21", "stable-diffusion-2-1", "gsvae", 8, 2, in_readme=False),
    _Denoiser("sdxl", "sdxl", "stable-diffusion-xl-base-1.0", "gsvae-sdxl-fp16", 2, 8, in_readme=False),
    _Denoiser("paa", "pixart_alpha", "pixart-alpha-512", "gsvae", 8, 2, in_readme=False, render_snr_gamma=1.0),
    _Denoiser("sd3m", "sd3", "stable-diffusion-3-medium", "gsvae-sd3", 2, 8, in_readme=False),
)


def _gsdiff(denoiser: _Denoiser, image: bool, render: bool) -> DiffusionConfig:
    """Without the rendering loss 100 epochs from the base model, with it 20 more."""
    flow = denoiser.backbone.startswith("sd3")
    before = f"gsdiff-{denoiser.option}{'-image' * image}"
    preset = f"{before}{'-render' * render}"
    base = _MODELS / denoiser.base
    return DiffusionConfig(
        preset=preset,
        backbone=f"{denoiser.backbone}{'_image' * image}",
        data=_data(denoiser.batch_size),
        optim=Optim(
            steps=13_020 if render else 65_100, epochs=20 if render else 100, accumulation=denoiser.accumulation,
            lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01, warmup_steps=1000, schedule="constant", precision="bf16",
            gradient_checkpointing=True,
        ),
        cadence=_CADENCE,
        recon=_RUNS / "gsrecon",
        vae=_RUNS / f"{denoiser.autoencoder}{'-tiny' * render}",
        start=_RUNS / before if render else base,
        base=base,
        text="stored",
        text_store=_RUNS / "text" / denoiser.option,
        objective=ObjectiveOptions(density="logit_normal" if flow else "uniform"),
        rendering=RenderingOptions(
            probability=1.0 if render else 0.0, weights=_LOOKS, min_snr_gamma=denoiser.render_snr_gamma
        ),
        evaluation_steps=28 if flow else 20,
        evaluation_guidance=(1.0, 2.0, 3.0) if image else (1.0, 3.0, 7.5),
        run=RunOptions(out=_RUNS / preset),
    )  # fmt: skip


GSVAES = {config.preset: config for one in AUTOENCODERS for config in (_gsvae(one), _tiny(one))}
GSDIFFS = {
    config.preset: config
    for render in (False, True)
    for denoiser in DENOISERS
    for config in (_gsdiff(denoiser, False, render), _gsdiff(denoiser, True, render))
}


def description(config: VaeConfig | DiffusionConfig) -> str:
    """What a run trains and what it starts from, in one line."""
    if isinstance(config, VaeConfig):
        if config.part == "tiny":
            return f"GSVAE's tiny decoder, from {Path(str(config.tiny_base)).name}, on the latents of {config.vae}"
        return f"GSVAE, from the autoencoder of {Path(str(config.base)).name}, widened to 12 channels"
    condition = "image and text" if config.backbone.endswith("_image") else "text"
    loss = ", with the rendering loss" if config.rendering.probability else ""
    return f"denoiser conditioned on {condition}{loss}, from {Path(str(config.start)).name}"
