"""What the configurations of all stages share, as frozen dataclasses from which tyro builds the command line.

A stage derives its own from `StageConfig`, in a file of its own beside this one, and names there the class that trains
it, what it adds, and the ranges of that.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple


class Bound(NamedTuple):
    """The allowed range of a field, both ends included."""

    field: str  # with dots
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Data:
    """The objects, and which of their views a sample shows."""

    source: str = "procedural"  # or a path: training.data.open_source lists what may lie there
    objects: int = 1024  # to train on; of a path at most so many, 0: all
    validation_objects: int = 12  # never trained on, the same in every evaluation
    seed: int = 0  # of the series of procedural objects; which objects of a path are held out for validation
    batch_size: int = 8  # objects per process and step
    views: int = 8  # per sample: the input views first, then novel ones
    first_views: tuple[int, ...] = (0, 27)  # reference views; of a path also (): every view of every ring
    compat: bool = False  # maps of a path as published: from full-size images, composited over white a second time

    grammar: Literal["basic", "rich"] = "basic"  # kinds of objects and captions: procedural.synthetic_config.CONFIGS
    pool_size: int = 4  # novel views rendered per procedural object, from which each sample draws
    store_views: bool = True  # render procedural objects once, into `cache`; False: whenever they are asked for
    target_size: int = 0  # side of the true views that renders are compared with; 0: that of the splat grids

    captions: Path | None = None  # CSV of ids and captions (Cap3D's), instead of those beside the objects of a path
    ids: Path | None = None  # list of the objects of a path to use: text, CSV or JSON
    validation_ids: Path | None = None  # list of the objects of a path to hold out; as many as `validation_objects`
    uid_map: Path | None = None  # JSON from the ids of a path to those of captions and list (GObjaverse to Objaverse)
    skip_broken: bool = False  # replace objects that cannot be read, counting them, instead of ending the run
    workers: int = 1  # threads that prepare batches ahead; 0: none. The batches are the same with any number
    prefetch: int = 2  # batches prepared ahead
    cache: Path = field(default_factory=lambda: Path(os.environ.get("DIFFSPLAT_CACHE", "runs/cache")))  # rendered views


Precision = Literal["none", "bf16", "fp16"]


@dataclass(frozen=True)
class Optim:
    """AdamW, learning-rate schedule, gradient clipping, moving average, precision; what of it is trained."""

    steps: int = 1000  # updates of the weights
    epochs: int = 0  # if not 0: `steps` is the number of updates in so many passes over the objects
    accumulation: int = 1  # batches per process and update; their mean is one global batch
    lr: float = 4e-4
    lr_multipliers: tuple[tuple[str, float], ...] = ()  # (part of a parameter's name, factor); the first that fits
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.05  # never on norms, biases and embeddings
    max_grad_norm: float = 1.0
    schedule: Literal["constant", "cosine", "linear"] = "cosine"  # after the warm-up
    warmup_steps: int = 50
    trainable: tuple[str, ...] = ()  # parts of module names: what else the stage would train stays as it starts
    gradient_checkpointing: bool = False  # computes activations again in the backward pass, instead of keeping them
    precision: Precision = "none"  # of the trained networks' matrix products; the rest, and the weights, are float32
    max_skipped: int = 0  # updates of a run that may be skipped since their loss or gradient is not finite
    ema: bool = True  # evaluation, checkpoints' best and finished weights are moving averages
    ema_max_decay: float = 0.9999
    ema_warmup: bool = True  # the decay rises to its cap; see training.ema.ema_decay for this and the rest
    ema_inverse_gamma: float = 1.0
    ema_power: float = 0.75
    ema_min_decay: float = 0.0
    ema_update_after_step: int = 0


@dataclass(frozen=True)
class Cadence:
    """How often the loop logs, evaluates and saves, in steps."""

    log_every: int = 10
    evaluate_every: int = 250
    save_every: int = 250
    keep_checkpoints: int = 2  # the newest; the best by the stage's own measure is kept besides


@dataclass(frozen=True)
class RunOptions:
    """Folder, device and seed of a run."""

    out: Path = Path("runs/unnamed")
    resume: bool = False  # continue from the newest checkpoint under `out`
    seed: int = 0  # initial weights, order of the data, noise
    device: str = "cpu"  # of torch; with several processes its kind alone, each process takes one
    threads: int = 2  # of torch, on the CPU; gradients depend on it
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"  # besides log.jsonl


@dataclass(frozen=True)
class StageConfig:
    """Options of every stage."""

    stage: ClassVar[str]  # module and class that train it, as "training.stages.recon:ReconStage"
    parents: ClassVar[tuple[str, ...]] = ()  # fields that name finished runs or bundles which it builds on
    best: ClassVar[str] = ""  # scalar of an evaluation by which a checkpoint is best; "-" before it: the lowest
    unused_parameters: ClassVar[bool] = (
        False  # whether some trained ones have no part in the loss, now and then or ever
    )

    preset: str = ""
    backbone: str = "pico"  # a key of diffsplat.backbones.BACKBONES
    compat: bool = False  # the published behaviour wherever ours differs on purpose: docs/training.md lists it
    data: Data = Data()
    optim: Optim = Optim()
    cadence: Cadence = Cadence()
    run: RunOptions = RunOptions()

    def bounds(self) -> list[Bound]:
        """Ranges of numeric fields; a stage adds its own."""
        data, optim, cadence = self.data, self.optim, self.cadence
        return [
            Bound("data.objects", data.objects, 1 if data.source == "procedural" else 0, 10**9),
            Bound("data.batch_size", data.batch_size, 1, data.objects or 10**6),
            Bound("data.validation_objects", data.validation_objects, 1, 4096),
            Bound("data.pool_size", data.pool_size, 0, 30),
            Bound("data.target_size", data.target_size, 0, 4096),
            Bound("data.workers", data.workers, 0, 1024),
            Bound("data.prefetch", data.prefetch, 1, 1024),
            Bound("optim.steps", optim.steps, 1, 10**9),
            Bound("optim.warmup_steps", optim.warmup_steps, 0, optim.steps),
            Bound("optim.epochs", optim.epochs, 0, 10**6),
            Bound("optim.accumulation", optim.accumulation, 1, 10**6),
            Bound("optim.max_skipped", optim.max_skipped, 0, 10**9),
            Bound("optim.ema_max_decay", optim.ema_max_decay, 0.0, 0.999999),
            Bound("optim.ema_min_decay", optim.ema_min_decay, 0.0, optim.ema_max_decay),
            Bound("optim.ema_update_after_step", optim.ema_update_after_step, 0, 10**9),
            Bound("cadence.log_every", cadence.log_every, 1, 10**9),
            Bound("cadence.evaluate_every", cadence.evaluate_every, 1, 10**9),
            Bound("cadence.save_every", cadence.save_every, 1, 10**9),
            Bound("cadence.keep_checkpoints", cadence.keep_checkpoints, 1, 10**6),
            Bound("run.threads", self.run.threads, 1, 4096),
        ]

    def check(self) -> None:
        """Refuse values out of range and combinations that make no sense; a stage adds its own.

        Raises:
            ValueError: names the field, its value and the allowed range.
        """
        for name, value, low, high in self.bounds():
            if not low <= value <= high:
                raise ValueError(f"{name} = {value} must lie in [{low}, {high}]")
        for name in ("lr", "max_grad_norm", "ema_inverse_gamma", "ema_power"):
            value = getattr(self.optim, name)
            if not value > 0:
                raise ValueError(f"optim.{name} = {value} must be greater than 0")
        for part, factor in self.optim.lr_multipliers:
            if not (part and factor > 0):
                raise ValueError(f"optim.lr_multipliers = {part!r} {factor}: needs a name and a factor greater than 0")


PerceptualTerm = Literal["none", "ssim", "lpips", "effnet-feature", "auto"]


@dataclass(frozen=True)
class RenderWeights:
    """Terms of the rendering loss (training.rendering_loss) and their weights."""

    image: float = 1.0
    mask: float = 1.0
    coord: float = 0.0  # surface points that the pixels show
    normal: float = 0.0  # 1 - cosine of the surface's normals
    perceptual: PerceptualTerm = "ssim"  # auto: LPIPS if its weights are on this machine, otherwise SSIM
    ssim: float = 0.2  # weight of 1 - SSIM
    lpips: float = 1.0
    effnet: float = 1.0
    perceptual_size: int = 256  # side to which LPIPS and effnet-feature resize images; 0: they do not
    perceptual_start: int = 0  # step up to which the perceptual term counts nothing
    perceptual_full: int = 0  # step from which it counts fully; in between it grows linearly

    def bounds(self, prefix: str = "weights") -> list[Bound]:
        """Ranges of the fields."""
        terms = ("image", "mask", "coord", "normal", "ssim", "lpips", "effnet")
        return [
            *(Bound(f"{prefix}.{name}", getattr(self, name), 0.0, 1e9) for name in terms),
            Bound(f"{prefix}.perceptual_size", self.perceptual_size, 0, 4096),
            Bound(f"{prefix}.perceptual_start", self.perceptual_start, 0, self.perceptual_full),
            Bound(f"{prefix}.perceptual_full", self.perceptual_full, 0, 10**9),
        ]

    def ramp(self, step: int) -> float:
        """Share of the perceptual term's weight that counts after `step` updates."""
        if step >= self.perceptual_full:
            return 1.0
        if step <= self.perceptual_start:
            return 0.0
        return (step - self.perceptual_start) / (self.perceptual_full - self.perceptual_start)


def to_plain(config: Any) -> Any:
    """Convert a configuration to JSON types."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {entry.name: to_plain(getattr(config, entry.name)) for entry in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config
