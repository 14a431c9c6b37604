"""Configuration of the controlnet stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from diffsplat.backbones.spec import ControlType
from training.config.diffusion import DiffusionConfig


@dataclass(frozen=True)
class ControlNetConfig(DiffusionConfig):
    """ControlNet of a frozen UNet (`start`): a normal, depth or canny map of view 0 steers all views."""

    stage: ClassVar[str] = "training.stages.controlnet:ControlNetStage"
    parents: ClassVar[tuple[str, ...]] = ("recon", "vae", "start", "controlnet_start")

    control: ControlType = "normal"
    # finished run of this stage or bundle to go on from; a copy of the UNet's encoder if not given
    controlnet_start: Path | None = None
    text: Literal["trained", "frozen", "stored"] = "frozen"

    def check(self) -> None:
        """Adds that denoiser and text stay as they are."""
        super().check()
        if self.control not in get_args(ControlType):
            raise ValueError(f"control = {self.control!r} must be one of {', '.join(get_args(ControlType))}")
        if self.start is None:
            raise ValueError(
                "start is not set: must name the run, bundle or base model whose denoiser is to be steered"
            )
        if self.text == "trained":
            raise ValueError("text = 'trained': must be 'frozen' or 'stored', a ControlNet leaves the text as it is")
