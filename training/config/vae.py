"""Configuration of the vae stage, which also trains one of two decoders alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from training.config.common import Bound, RenderWeights, StageConfig


@dataclass(frozen=True)
class VaeConfig(StageConfig):
    """GSVAE: grid of Gaussians <-> latents, with a frozen GSRecon."""

    stage: ClassVar[str] = "training.stages.vae:VaeStage"
    parents: ClassVar[tuple[str, ...]] = ("recon", "vae")
    best: ClassVar[str] = "psnr_novel"

    recon: Path = Path("runs/pico/recon")  # finished run of the recon stage, or a bundle
    vae: Path | None = None  # finished run of this stage, or a bundle, to start from
    # `vae` was trained on another recon stage: its weights go on, and the latents become others; part = "all" alone
    adapt: bool = False
    base: Path | None = None  # base model with a folder `vae`, or an autoencoder's own: its weights, widened
    tiny_base: Path | None = None  # for the tiny decoder: an image model's tiny autoencoder, such as taesd
    first_weights: Literal["random", "average"] = "random"  # of a new autoencoder: training.stages.vae_start
    # the trained part; "decoder" and "tiny" leave the latents of `vae` unchanged, "tiny" its decoder too
    part: Literal["all", "decoder", "tiny"] = "all"
    tiny_width: int = 64  # of a tiny decoder where the backbone does not fix it: channels,
    tiny_blocks: int = 3  # and blocks of each resolution but the last, which has one
    # keep GSRecon's grids below `data.cache`, in float16: 0.4 MB per object and reference view at 64 px
    cache_grids: bool = False
    weights: RenderWeights = RenderWeights()
    grid_weight: float = 1.0
    render_weight: float = 1.0
    rendered_objects: int = 8  # at most, per batch; rendering costs more than the rest of a small autoencoder
    kl_weight: float = 1e-5  # small: keeps latents near unit size without blurring them; compat: 0

    def bounds(self) -> list[Bound]:
        """Adds the weights, the number of rendered objects and the size of the tiny decoder."""
        return [
            *super().bounds(),
            *self.weights.bounds(),
            Bound("rendered_objects", self.rendered_objects, 1, 10**6),
            Bound("grid_weight", self.grid_weight, 0.0, 1e9),
            Bound("render_weight", self.render_weight, 0.0, 1e9),
            Bound("kl_weight", self.kl_weight, 0.0, 1e9),
            Bound("tiny_width", self.tiny_width, 1, 4096),
            Bound("tiny_blocks", self.tiny_blocks, 1, 64),
        ]

    def check(self) -> None:
        """Adds what each part starts from."""
        super().check()
        if self.part != "all" and self.vae is None:
            raise ValueError(f"vae is not set: part = {self.part!r} needs the finished run whose latents it keeps")
        if self.adapt and (self.part != "all" or self.vae is None):
            raise ValueError(f"adapt = True: needs vae and part = 'all', not vae = {self.vae}, part = {self.part!r}")
        if self.vae is not None and self.base is not None:
            raise ValueError(f"base = {self.base} and vae = {self.vae}: an autoencoder starts from one of the two")
        if self.base is not None and self.first_weights != "random":
            raise ValueError(f"first_weights = {self.first_weights!r}: the weights come from base = {self.base}")
        if self.tiny_base is not None and self.part != "tiny":
            raise ValueError(f"tiny_base = {self.tiny_base}: only part = 'tiny' trains a tiny decoder")
