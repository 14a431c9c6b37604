"""Configurations of several stages in a row, and of what is made of them."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from training.config.common import StageConfig


@dataclass(frozen=True)
class BundleOutput:
    """What happens to a bundle that was made."""

    export_to: Path | None = None  # a served repository, into which it goes as the next version if it passes the gates


@dataclass(frozen=True)
class RecipeConfig(BundleOutput):
    """Several stages in a row, up to the bundle.

    A field of a stage that names the folder of another one, `run.out` of that stage, follows it to its place below
    `out`.
    """

    out: Path = Path("runs/recipe")  # one folder below it per stage, and `bundle`
    resume: bool = False  # skip finished stages and continue the unfinished one
    # name -> stage, in the order of training; of a network that several train, the last one's goes into the bundle
    stages: Annotated[dict[str, StageConfig], tyro.conf.arg(name="")] = field(default_factory=dict)

    def placed(self) -> dict[str, StageConfig]:
        """The stages with their folders below `out`, and the folders of their parents.

        Raises:
            ValueError: a stage comes before one that it is trained on.
        """
        places = {stage.run.out: name for name, stage in self.stages.items()}
        if len(places) < len(self.stages):
            raise ValueError(f"stages: two of {', '.join(self.stages)} have the same run.out")
        names = list(self.stages)
        placed: dict[str, StageConfig] = {}
        for name, stage in self.stages.items():
            moved: dict[str, Any] = {}
            for entry in dataclasses.fields(stage):
                parent = places.get(getattr(stage, entry.name)) if _is_path(getattr(stage, entry.name)) else None
                if parent is None:
                    continue
                if names.index(parent) >= names.index(name):
                    raise ValueError(f"{name}.{entry.name}: is trained on {parent}, which must come before it")
                moved[entry.name] = self.out / parent
            run = dataclasses.replace(stage.run, out=self.out / name, resume=self.resume or stage.run.resume)
            placed[name] = dataclasses.replace(stage, run=run, **moved)
        return placed


@dataclass(frozen=True)
class RefineConfig(BundleOutput):
    """Further training of one stage of a bundle, on the other ones' networks, into a new bundle."""

    bundle: Path = Path("bundles/nano")
    out: Path = Path("runs/nano-refined")  # holds the run, in a folder of the stage's name, and `bundle`
    resume: bool = False
    name: str = "diffusion"  # of the stage, in the bundle's lineage
    stage: Annotated[StageConfig, tyro.conf.arg(name="")] = field(default_factory=StageConfig)


@dataclass(frozen=True)
class BundleConfig(BundleOutput):
    """A bundle from finished runs, bundles and base models; of a network that several hold, the last one's is taken."""

    sources: tuple[Path, ...] = ()
    out: Path = Path("runs/bundle")


def _is_path(value: Any) -> bool:
    return isinstance(value, Path)
