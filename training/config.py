"""What a training run is, as frozen dataclasses: the single source of run facts, also the command line (tyro).

`StageConfig` is common to every stage; each stage adds its weights and the finished runs it starts from.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Data:
    """Which objects, and how they are shown."""

    grammar: Literal["basic", "rich"] = "basic"  # what may appear: training.data.synthetic_config.CONFIGS
    seed: int = 0  # series of procedural objects
    objects: int = 1024
    validation_objects: int = 12  # of the same series, far behind the training ones; the same in every evaluation
    batch_size: int = 8  # objects per process and step
    views: int = 8  # of a sample: the input views first, then novel ones
    first_views: tuple[int, ...] = (0, 27)  # reference views: the starts of both rings of the camera layout
    pool_size: int = 4  # novel views rendered per object, from which a sample draws


@dataclass(frozen=True)
class Optim:
    """AdamW, learning rate over steps, clipping, moving average."""

    steps: int = 1000
    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05  # never on norms, biases and embeddings
    max_grad_norm: float = 1.0
    schedule: Literal["constant", "cosine"] = "cosine"  # behind the warm-up
    warmup_steps: int = 50
    ema_max_decay: float = 0.9999
    precision: Literal["float32", "bfloat16"] = "float32"  # of the trained network's matrix products; rest is float32


@dataclass(frozen=True)
class Cadence:
    """How often the loop speaks, looks and saves, in steps."""

    log_every: int = 10
    evaluate_every: int = 250
    save_every: int = 250
    keep_checkpoints: int = 2


@dataclass(frozen=True)
class RunOptions:
    """Where and on what a stage runs."""

    out: Path = Path("runs/unnamed")
    resume: bool = False  # continue from the newest checkpoint under `out`
    seed: int = 0  # initial weights, order of the data, noise
    device: str = "cpu"
    threads: int = 2  # of torch, on the CPU


@dataclass(frozen=True)
class StageConfig:
    """What every stage has."""

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
    ssim: float = 0.2  # stands in for a perceptual term that would need downloaded weights


@dataclass(frozen=True)
class ReconConfig(StageConfig):
    """GSRecon: images of an object -> grid of Gaussians."""

    start: Path | None = None  # finished run of this stage to start from; none starts from random weights
    weights: RenderWeights = RenderWeights()
    position_weight: float = 1.0  # Gaussians of the object against the true surface points of their pixels
    colour_weight: float = 0.0  # Gaussians of the object against the colours of their pixels
    opacity_weight: float = 0.1  # Gaussians of the background towards full transparency and one fixed look


@dataclass(frozen=True)
class VaeConfig(StageConfig):
    """GSVAE: grid of Gaussians <-> latents, on a frozen GSRecon."""

    recon: Path = Path("runs/pico/recon")  # finished run of the recon stage
    vae: Path | None = None  # finished run of this stage to start from; none starts from random weights
    first_weights: Literal["random", "average"] = "random"  # of a new autoencoder (stages.vae_start)
    part: Literal["all", "decoder"] = "all"  # what is trained; "decoder" keeps the latents of `vae` as they are
    weights: RenderWeights = RenderWeights()
    grid_weight: float = 1.0
    render_weight: float = 1.0
    rendered_objects: int = 8  # of every batch, at most; rendering costs more than the rest of a small autoencoder
    kl_weight: float = 1e-5  # tiny: keeps latents near unit size without blurring them


@dataclass(frozen=True)
class DiffusionConfig(StageConfig):
    """Text-conditioned multi-view denoiser on cached latents; the text encoder is trained with it."""

    recon: Path = Path("runs/pico/recon")
    vae: Path = Path("runs/pico/vae")
    start: Path | None = None  # finished run of this stage to start from; none starts from random weights
    text_dropout: float = 0.1  # share of objects whose caption is replaced by the empty one
    min_snr_gamma: float = 0.0  # 0 = every timestep weighs the same
    evaluation_steps: int = 16


@dataclass(frozen=True)
class RecipeConfig:
    """A chain of stages that ends in a bundle."""

    out: Path = Path("runs/pico")  # each stage in its own folder below; the bundle in `bundle`
    resume: bool = False  # skip what is finished, continue what is not
    recon: ReconConfig = ReconConfig()
    vae: VaeConfig = VaeConfig()
    decoder: VaeConfig = VaeConfig(part="decoder")
    diffusion: DiffusionConfig = DiffusionConfig()


@dataclass(frozen=True)
class RefineConfig:
    """The diffusion stage once more, from the weights of a bundle."""

    bundle: Path = Path("bundles/nano")
    out: Path = Path("runs/nano-refined")  # the bundle's stages in `start`, the run in `diffusion`, then `bundle`
    resume: bool = False
    diffusion: DiffusionConfig = DiffusionConfig()


def to_plain(config: Any) -> Any:
    """A config as JSON types."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {entry.name: to_plain(getattr(config, entry.name)) for entry in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def check(config: StageConfig) -> None:
    """Refuse values no run can mean.

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
            raise ValueError("vae is open: part = 'decoder' needs the finished run whose latents it keeps")
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise ValueError(f"{name} = {value} must lie in [{low}, {high}]")
    for name, positive in (("optim.lr", optim.lr), ("optim.max_grad_norm", optim.max_grad_norm)):
        if not positive > 0:
            raise ValueError(f"{name} = {positive} must be greater than 0")
