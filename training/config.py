"""The configuration of a training run as frozen dataclasses, from which tyro also builds the command line.

All stages share `StageConfig`; each adds its loss weights and the finished runs it starts from.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Data:
    """Which objects are rendered, and from where."""

    grammar: Literal["basic", "rich"] = "basic"  # kinds of objects and captions: training.data.synthetic_config.CONFIGS
    seed: int = 0  # of the series of procedural objects
    objects: int = 1024
    validation_objects: int = 12  # from the same series, far past the training ones; the same in every evaluation
    batch_size: int = 8  # objects per process and step
    views: int = 8  # per sample: the input views first, then novel ones
    first_views: tuple[int, ...] = (0, 27)  # reference views: the starts of both rings of the camera layout
    pool_size: int = 4  # novel views rendered per object, from which each sample draws


@dataclass(frozen=True)
class Optim:
    """AdamW, learning-rate schedule, gradient clipping and moving average."""

    steps: int = 1000
    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05  # never on norms, biases and embeddings
    max_grad_norm: float = 1.0
    schedule: Literal["constant", "cosine"] = "cosine"  # after the warm-up
    warmup_steps: int = 50
    ema_max_decay: float = 0.9999
    precision: Literal["float32", "bfloat16"] = (
        "float32"  # of the trained networks' matrix products; the rest is float32
    )


@dataclass(frozen=True)
class Cadence:
    """How often the loop logs, evaluates and saves, in steps."""

    log_every: int = 10
    evaluate_every: int = 250
    save_every: int = 250
    keep_checkpoints: int = 2


@dataclass(frozen=True)
class RunOptions:
    """Folder, device and seed of a run."""

    out: Path = Path("runs/unnamed")
    resume: bool = False  # continue from the newest checkpoint under `out`
    seed: int = 0  # initial weights, order of the data, noise
    device: str = "cpu"
    threads: int = 2  # of torch, on the CPU


@dataclass(frozen=True)
class StageConfig:
    """Options of every stage."""

    preset: str = ""
    backbone: str = "pico"  # a key of diffsplat.backbones.BACKBONES
    data: Data = Data()
    optim: Optim = Optim()
    cadence: Cadence = Cadence()
    run: RunOptions = RunOptions()


@dataclass(frozen=True)
class RenderWeights:
    """Weights of the rendering loss (losses.rendering_loss)."""

    image: float = 1.0
    mask: float = 1.0
    ssim: float = 0.2  # in place of a perceptual term, which would need downloaded weights


@dataclass(frozen=True)
class ReconConfig(StageConfig):
    """GSRecon: images of an object -> grid of Gaussians."""

    start: Path | None = None  # finished run of this stage to start from; random weights if not given
    weights: RenderWeights = RenderWeights()
    position_weight: float = 1.0  # distance of the object's Gaussians from the true surface points of their pixels
    colour_weight: float = 0.0  # distance of the object's Gaussians from the colours of their pixels
    opacity_weight: float = 0.1  # pulls the background's Gaussians towards full transparency and one fixed look


@dataclass(frozen=True)
class VaeConfig(StageConfig):
    """GSVAE: grid of Gaussians <-> latents, with a frozen GSRecon."""

    recon: Path = Path("runs/pico/recon")  # finished run of the recon stage
    vae: Path | None = None  # finished run of this stage to start from; random weights if not given
    first_weights: Literal["random", "average"] = "random"  # of a new autoencoder: training.stages.vae_start
    part: Literal["all", "decoder"] = "all"  # the trained part; "decoder" leaves the latents of `vae` unchanged
    weights: RenderWeights = RenderWeights()
    grid_weight: float = 1.0
    render_weight: float = 1.0
    rendered_objects: int = 8  # at most, per batch; rendering costs more than the rest of a small autoencoder
    kl_weight: float = 1e-5  # small: keeps latents near unit size without blurring them


@dataclass(frozen=True)
class DiffusionConfig(StageConfig):
    """Text-conditioned multi-view denoiser on cached latents, trained together with its text encoder."""

    recon: Path = Path("runs/pico/recon")
    vae: Path = Path("runs/pico/vae")
    start: Path | None = None  # finished run of this stage to start from; random weights if not given
    text_dropout: float = 0.1  # share of objects whose caption is replaced by an empty one
    min_snr_gamma: float = 0.0  # 0: all timesteps weigh the same
    evaluation_steps: int = 16


@dataclass(frozen=True)
class RecipeConfig:
    """All stages in a row, up to the bundle."""

    out: Path = Path("runs/pico")  # one folder below it per stage, and `bundle`
    resume: bool = False  # skip finished stages and continue the unfinished one
    recon: ReconConfig = ReconConfig()
    vae: VaeConfig = VaeConfig()
    decoder: VaeConfig = VaeConfig(part="decoder")
    diffusion: DiffusionConfig = DiffusionConfig()


@dataclass(frozen=True)
class RefineConfig:
    """Further training of a bundle's denoiser and text encoder."""

    bundle: Path = Path("bundles/nano")
    out: Path = Path("runs/nano-refined")  # holds `start` (the bundle's stages), `diffusion` (the run) and `bundle`
    resume: bool = False
    diffusion: DiffusionConfig = DiffusionConfig()


def to_plain(config: Any) -> Any:
    """Convert a configuration to JSON types."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {entry.name: to_plain(getattr(config, entry.name)) for entry in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def check(config: StageConfig) -> None:
    """Refuse values out of range.

    Raises:
        ValueError: names the field, its value and the allowed range.
    """
    data, optim, cadence = config.data, config.optim, config.cadence
    bounds: list[tuple[str, float, float, float]] = [
        ("data.batch_size", data.batch_size, 1, data.objects),
        ("data.validation_objects", data.validation_objects, 1, 4096),
        ("optim.steps", optim.steps, 1, 10**9),
        ("optim.warmup_steps", optim.warmup_steps, 0, optim.steps),
        ("optim.ema_max_decay", optim.ema_max_decay, 0.0, 0.999999),
        ("cadence.log_every", cadence.log_every, 1, 10**9),
        ("cadence.evaluate_every", cadence.evaluate_every, 1, 10**9),
        ("cadence.save_every", cadence.save_every, 1, 10**9),
        ("cadence.keep_checkpoints", cadence.keep_checkpoints, 1, 10**6),
        ("run.threads", config.run.threads, 1, 4096),
    ]
    if isinstance(config, DiffusionConfig):
        bounds.append(("text_dropout", config.text_dropout, 0.0, 1.0))
    if isinstance(config, VaeConfig):
        bounds.append(("rendered_objects", config.rendered_objects, 1, 10**6))
        if config.part == "decoder" and config.vae is None:
            raise ValueError("vae is not set: part = 'decoder' needs the finished run whose latents it keeps")
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise ValueError(f"{name} = {value} must lie in [{low}, {high}]")
    for name, positive in (("optim.lr", optim.lr), ("optim.max_grad_norm", optim.max_grad_norm)):
        if not positive > 0:
            raise ValueError(f"{name} = {positive} must be greater than 0")
