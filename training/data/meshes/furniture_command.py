"""`python -m training data furniture OUT`: Debian's furniture models -> records, with captions and credits."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from training.data.meshes.command import Work, render_jobs
from training.data.meshes.furniture import CATALOGUES, FurnitureModel, find_catalogues, read_models
from training.data.meshes.job import Job
from training.data.meshes.rendering import RenderSettings

TRAINING_IDS = "training_ids.txt"
HELD_OUT_IDS = "held_out_ids.txt"
ATTRIBUTION = "attribution.csv"


@dataclass(frozen=True)
class Furniture:
    """Render the 820 models of Debian's package sweethome3d-furniture: 175 in the public domain, the others CC-BY 3.0.

    One in ten models and the whole category of lights are held out: `held_out_ids.txt`. `attribution.csv` names the
    authors and licences; keep it with whatever is made of the models. The same command continues an interrupted run.
    """

    out: tyro.conf.Positional[Path]  # a folder of its own
    catalogues: Path = CATALOGUES  # folder with the .sh3f files
    settings: tyro.conf.OmitArgPrefixes[RenderSettings] = RenderSettings(resolution=128)
    work: tyro.conf.OmitArgPrefixes[Work] = Work()


def main(arguments: list[str]) -> int:
    """Run the command; 0, or 1 if objects failed."""
    command = tyro.cli(Furniture, prog="python -m training data furniture", args=arguments)
    command.settings.check()
    models = read_models(find_catalogues(command.catalogues))
    jobs = [
        Job(
            model.uid, Path(model.member), model.captions, command.out, command.settings, "y",
            archive=model.archive, rotation=model.rotation, size=model.size,
        )
        for model in models
    ]  # fmt: skip
    code = render_jobs(jobs, command.out, command.settings, command.work)
    write_lists(command.out, models)
    return code


def write_lists(out: Path, models: Sequence[FurnitureModel]) -> None:
    """Ids of training and of held-out objects that are rendered, and the credits of all models."""
    rendered = [model for model in models if (out / model.uid).is_dir()]
    for name, held_out in ((TRAINING_IDS, False), (HELD_OUT_IDS, True)):
        _replace(out / name, "".join(f"{model.uid}\n" for model in rendered if model.held_out == held_out))
    rows = [("uid", "name", "category", "creator", "licence", "catalogue")]
    rows += [(m.uid, m.name, m.category, m.creator, m.licence, m.archive.name) for m in models]
    temporary = out / f".{ATTRIBUTION}.{os.getpid()}"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    os.replace(temporary, out / ATTRIBUTION)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
