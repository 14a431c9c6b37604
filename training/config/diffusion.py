"""Configuration of the diffusion stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from training.config.common import Bound, RenderWeights, StageConfig
from training.config.objective import ObjectiveOptions


@dataclass(frozen=True)
class RenderingOptions:
    """The rendering loss of clean estimates."""

    probability: float = 0.0  # that a batch has it; without it the diffusion loss counts alone, with weight 1
    decoder: Literal["tiny", "full"] = "tiny"  # of the autoencoder
    weights: RenderWeights = RenderWeights()
    min_snr_gamma: float = 0.0  # the loss of an object weighs min(snr, gamma); 0: 1
    diffusion_weight: float = 1.0
    render_weight: float = 1.0

    def bounds(self) -> list[Bound]:
        """Ranges of the numbers."""
        return [
            Bound("rendering.probability", self.probability, 0.0, 1.0),
            Bound("rendering.min_snr_gamma", self.min_snr_gamma, 0.0, 1e6),
            Bound("rendering.diffusion_weight", self.diffusion_weight, 0.0, 1e9),
            Bound("rendering.render_weight", self.render_weight, 0.0, 1e9),
            *self.weights.bounds("rendering.weights"),
        ]


@dataclass(frozen=True)
class DiffusionConfig(StageConfig):
    """Multi-view denoiser on cached latents, conditioned on text and, by its backbone, on an image."""

    stage: ClassVar[str] = "training.stages.diffusion:DiffusionStage"
    parents: ClassVar[tuple[str, ...]] = ("recon", "vae", "start")
    best: ClassVar[str] = "-mse"

    recon: Path = Path("runs/pico/recon")
    vae: Path = Path("runs/pico/vae")
    # finished run of this stage, bundle, or base model in diffusers' layout to start from; random weights if not given
    start: Path | None = None
    # `start` was trained on other latents or words: its weights go on with those of this run, if the networks are alike
    adapt: bool = False
    # base model or bundle with the frozen text encoders and the image autoencoder; `start` if that is a base model
    base: Path | None = None
    # trained: the text encoder is trained with its denoiser; frozen: those of `base` run at every step;
    # stored: their embeddings were computed once, see `encode-text`
    text: Literal["trained", "frozen", "stored"] = "trained"
    text_store: Path | None = None
    views_each: int = 0  # reference views that an object's latents are made from, by turns; 0: all of `first_views`
    dropout_rate: float = 0.05  # of conditions, for guidance: see training.objectives.drop_conditions
    objective: ObjectiveOptions = ObjectiveOptions()
    rendering: RenderingOptions = RenderingOptions()
    evaluation_steps: int = 16
    evaluation_guidance: tuple[float, ...] = ()  # one panel of samples for each scale; the backbone's own if empty

    def bounds(self) -> list[Bound]:
        """Adds the share of dropped conditions and the numbers of the losses."""
        return [
            *super().bounds(),
            Bound("views_each", self.views_each, 0, len(self.data.first_views) or 10**6),
            Bound("dropout_rate", self.dropout_rate, 0.0, 0.5),
            Bound("evaluation_steps", self.evaluation_steps, 1, 1000),
            *(Bound("evaluation_guidance", scale, 1.0, 100.0) for scale in self.evaluation_guidance),
            *self.objective.bounds(),
            *self.rendering.bounds(),
        ]

    def check(self) -> None:
        """Adds where the text comes from."""
        super().check()
        if (self.text == "stored") != (self.text_store is not None):
            missing = "not set" if self.text_store is None else f"{self.text_store}"
            raise ValueError(f"text_store is {missing}: it belongs to text = 'stored', this run has {self.text!r}")
