"""ControlNets: the published runs for SD1.5 and SDXL, and nano's."""

from pathlib import Path

from training.config.common import Cadence, Data, Optim, RunOptions
from training.config.controlnet import ControlNetConfig

KINDS = ("normal", "depth", "canny")
_RUNS = Path("runs")


def _published(kind: str, backbone: str) -> ControlNetConfig:
    """65,100 updates: 100 epochs of 83,296 objects, 128 of them per update on 8 processes."""
    small = backbone == "sd15"
    base = Path("models") / ("stable-diffusion-v1-5" if small else "stable-diffusion-xl-base-1.0")
    name = f"controlnet-{kind}" + ("" if small else f"-{backbone}")
    return ControlNetConfig(
        preset=name,
        backbone=backbone,
        control=kind,  # type: ignore[arg-type]
        data=Data(
            source="data/gobjaverse", objects=0, validation_objects=16, batch_size=8 if small else 2, views=8,
            first_views=(),
        ),
        optim=Optim(
            steps=65_100, epochs=100, accumulation=2 if small else 8, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01,
            schedule="constant", warmup_steps=1000, precision="bf16", gradient_checkpointing=True, ema=False,
        ),
        cadence=Cadence(log_every=1, evaluate_every=1000, save_every=2000),
        recon=_RUNS / "gsrecon",
        vae=_RUNS / ("gsvae" if small else "gsvae-sdxl-fp16"),
        start=_RUNS / f"gsdiff-{backbone}-render",
        base=base,
        text="stored",
        text_store=_RUNS / "text" / backbone,
        run=RunOptions(out=_RUNS / name),
    )  # fmt: skip


def _nano(kind: str) -> ControlNetConfig:
    """On the networks of the shipped bundle, which stay as they are."""
    bundle = Path("bundles/nano")
    return ControlNetConfig(
        preset=f"nano/controlnet-{kind}",
        backbone="nano",
        control=kind,  # type: ignore[arg-type]
        data=Data(grammar="rich", objects=3000, validation_objects=24, batch_size=16, views=4, pool_size=0),
        optim=Optim(steps=3000, lr=4e-4, betas=(0.9, 0.99), weight_decay=0.01, warmup_steps=100, precision="bf16"),
        cadence=Cadence(evaluate_every=500, save_every=500),
        recon=bundle,
        vae=bundle,
        start=bundle,
        run=RunOptions(out=_RUNS / "nano" / f"controlnet-{kind}"),
    )


PUBLISHED = tuple(_published(kind, backbone) for backbone in ("sd15", "sdxl") for kind in KINDS)
NANO = tuple(_nano(kind) for kind in KINDS)
