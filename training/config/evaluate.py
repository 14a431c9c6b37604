"""Configuration of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from training.config.common import Bound, Data


@dataclass(frozen=True)
class EvaluateConfig:
    """Figures and a contact sheet of a finished run or a bundle, on objects that training never saw."""

    source: Annotated[Path, tyro.conf.Positional] = Path("bundles/nano")
    recon: Path | None = None  # of an autoencoder's run: the run or bundle with the GSRecon it was trained on
    out: Path = Path("runs/evaluation")  # report.json and sheet.png
    backbone: str = ""  # of a run; a bundle names its own
    data: Data = Data(validation_objects=24, views=7, batch_size=1)  # its validation objects, with novel views
    prompts: int = 24  # of a bundle: objects that are generated from captions of the data; 0: none
    steps: int = 0  # of sampling; 0: the bundle's own
    seed: int = 0
    probes: bool = False  # colours and shapes too: python -m benchmarks.quality, for bundles of procedural objects
    clip: Path | None = None  # folder of a CLIP model in transformers' layout, such as clip-vit-base-patch32
    image_reward: Path | None = None  # file of ImageReward's weights; needs the package image-reward
    device: str = "cpu"

    def check(self) -> None:
        """Refuse values out of range. Raises ValueError naming field, value and range."""
        for bound in (
            Bound("data.validation_objects", self.data.validation_objects, 1, 10**6),
            Bound("prompts", self.prompts, 0, 10**5),
            Bound("steps", self.steps, 0, 1000),
        ):
            if not bound.low <= bound.value <= bound.high:
                raise ValueError(f"{bound.field} = {bound.value} must lie in [{bound.low}, {bound.high}]")
        if not self.source.is_dir():
            raise ValueError(f"source = {self.source}: no such folder; it must hold a finished run or a bundle")
