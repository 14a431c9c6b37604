"""`python -m benchmarks.furniture [--data DIR] [--run DIR] [--sheet PNG] [--json PATH]`: GSRecon on real meshes.

Trains the preset `furniture/recon` from bundles/nano into `--run`, unless it has finished there (an interrupted run
goes on), and measures novel views of the held-out furniture before and after. The folder of renders must be there:

    python -m training data furniture data/furniture --resolution 64 --geometry centre

The sheet shows held-out objects of the public domain only: views that the networks were not given, as they are, before
and after.
"""

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.machine import describe_machine
from diffsplat.backbones import BACKBONES
from diffsplat.splats.gsrecon import build_gsrecon
from training.checkpoint import FINISHED, MANIFEST, read_finished
from training.config.recon import ReconConfig
from training.data.dataset import Dataset
from training.data.meshes.furniture import HELD_OUT_CATEGORY
from training.data.meshes.furniture_command import ATTRIBUTION, HELD_OUT_IDS
from training.data.open_path import open_records
from training.data.sample import Batch, collate
from training.parents import open_parent
from training.presets.furniture import FURNITURE, RECON
from training.recipe import Interrupted, run_stage
from training.stages.common import batch_cameras, image_grid, input_images
from training.stages.recon import ReconStage

BAR_DB = 2.0
BAR_S = 45 * 60
_CHUNK = 6  # objects rendered together
_FIRST_VIEWS = (0, 27)  # every object is measured from the starts of both rings
_SHEET_OBJECTS = 12
_NOVEL_SHOWN = 3  # novel views of an object on the sheet


class Measured(NamedTuple):
    """Novel views of held-out objects. O objects, each from both rings."""

    uids: list[str]  # [O]
    errors: dict[str, Tensor]  # network -> mean squared error of each image, [O, images]
    images: dict[str, Tensor]  # "truth" and networks -> [O, novel views, 3, H, W] of the first ring


def configured(data: Path, run: Path, steps: int | None) -> ReconConfig:
    """The preset with its folders."""
    optim = RECON.optim if steps is None else dataclasses.replace(RECON.optim, steps=steps)
    return dataclasses.replace(
        RECON,
        data=dataclasses.replace(RECON.data, source=str(data), validation_ids=data / HELD_OUT_IDS),
        optim=optim,
        run=dataclasses.replace(RECON.run, out=run, resume=(run / "checkpoints").is_dir()),
    )


def train(config: ReconConfig) -> float:
    """Train what is not trained yet; seconds of all of it."""
    if not (config.run.out / FINISHED / MANIFEST).is_file():
        run_stage(config)
    return float(read_finished(config.run.out)["seconds"])


@torch.no_grad()
def measure(config: ReconConfig, networks: dict[str, nn.Module]) -> Measured:
    """All networks on the same views of every held-out object."""
    stage = ReconStage(config)
    geometry = stage.geometry
    source = open_records(
        dataclasses.replace(config.data, validation_objects=10**6), geometry.grid_size, validation=True
    )
    views = 2 * geometry.views
    rings = [
        Dataset(
            source, num_input_views=geometry.views, num_views=views, first_views=(first,),
            pixel_rule=geometry.unproject_pixel_rule,
        )
        for first in _FIRST_VIEWS
    ]  # fmt: skip
    errors: dict[str, list[Tensor]] = {name: [] for name in networks}
    images: dict[str, list[Tensor]] = {name: [] for name in ("truth", *networks)}
    for start in range(0, len(source), _CHUNK):
        rows = range(start, min(start + _CHUNK, len(source)))
        print(f"\rmeasuring {rows.stop}/{len(source)}", end="", file=sys.stderr, flush=True)
        batches = [collate([ring.sample(row, np.random.default_rng(row)) for row in rows]) for ring in rings]
        for name, network in networks.items():
            shown = [_novel(stage, network, batch) for batch in batches]
            truth = [batch.images_rgb[:, geometry.views :] for batch in batches]
            squares = [(a - b).square().flatten(2).mean(2) for a, b in zip(shown, truth, strict=True)]
            errors[name].append(torch.cat(squares, dim=1))
            images[name].append(shown[0])
        images["truth"].append(batches[0].images_rgb[:, geometry.views :])
    print(file=sys.stderr)
    return Measured(
        [source.uid(row) for row in range(len(source))],
        {name: torch.cat(parts) for name, parts in errors.items()},
        {name: torch.cat(parts) for name, parts in images.items()},
    )


def _novel(stage: ReconStage, network: nn.Module, batch: Batch) -> Tensor:
    """Renders of the views that the network is not given, [B, V, 3, H, W]."""
    inputs = stage.geometry.views
    grid = network(input_images(batch, inputs), batch_cameras(batch, inputs))
    return stage.render(stage.gaussians(grid, batch), batch).rgb[:, inputs:].clamp(0.0, 1.0)


def psnr_db(errors: Tensor) -> float:
    """Mean PSNR of images in [0, 1] with these mean squared errors."""
    return float(-10.0 * torch.log10(errors.clamp_min(1e-10)).mean())


def sheet(measured: Measured, public_domain: frozenset[str], networks: Sequence[str]) -> np.ndarray:
    """Rows of truth, before, after; two objects beside each other."""
    rows = [row for row, uid in enumerate(measured.uids) if uid in public_domain]
    chosen = rows[:: max(1, len(rows) // _SHEET_OBJECTS)][:_SHEET_OBJECTS]
    if not chosen:
        raise ValueError("none of the held-out objects is in the public domain; nothing can be shown")
    blocks = []
    for row in chosen:
        shown = [measured.images[name][row, :_NOVEL_SHOWN] for name in ("truth", *networks)]
        blocks.append(image_grid(torch.stack(shown)))
    blocks += [np.full_like(blocks[0], 255)] * (len(blocks) % 2)
    return np.concatenate([np.concatenate(blocks[at : at + 2], axis=1) for at in range(0, len(blocks), 2)], axis=0)


def main() -> int:
    """Print before and after; 1 where the bar is missed or the run was stopped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.furniture", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=FURNITURE, help="folder of the rendered furniture")
    parser.add_argument("--run", type=Path, default=RECON.run.out, help="folder of the training run")
    parser.add_argument("--steps", type=int, help="training steps, if other than the preset's")
    parser.add_argument("--sheet", type=Path, help="also write the contact sheet to this file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    config = configured(arguments.data, arguments.run, arguments.steps)
    try:
        seconds = train(config)
    except (ValueError, Interrupted) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    assert config.start is not None
    networks: dict[str, nn.Module] = {}
    for name, run in (("before", config.start), ("after", arguments.run)):
        networks[name] = open_parent(run, "gsrecon").load("gsrecon", build_gsrecon(BACKBONES[config.backbone])).eval()
    measured = measure(config, networks)
    credits = list(csv.DictReader((arguments.data / ATTRIBUTION).read_text(encoding="utf-8").splitlines()))
    kinds = {row["uid"]: row["category"] for row in credits}
    groups = {
        "all held-out objects": [True] * len(measured.uids),
        f"category never seen ({HELD_OUT_CATEGORY})": [kinds[uid] == HELD_OUT_CATEGORY for uid in measured.uids],
        "objects of categories seen": [kinds[uid] != HELD_OUT_CATEGORY for uid in measured.uids],
    }
    print(f"{'novel views, PSNR in dB':<34}{'objects':>8}{'before':>9}{'after':>9}{'gain':>8}")
    figures: dict[str, dict[str, float]] = {}
    for group, members in groups.items():
        rows = torch.tensor(members)
        before, after = (psnr_db(measured.errors[name][rows]) for name in ("before", "after"))
        figures[group] = {"objects": int(rows.sum()), "before_db": before, "after_db": after, "gain_db": after - before}
        print(f"{group:<34}{int(rows.sum()):>8}{before:>9.2f}{after:>9.2f}{after - before:>+8.2f}")
    gain = figures["all held-out objects"]["gain_db"]
    met = gain >= BAR_DB and seconds <= BAR_S
    print(f"bar: at least +{BAR_DB:.0f} dB in at most {BAR_S // 60} minutes of training ({seconds / 60:.0f} here): "
          f"{'met' if met else 'MISSED'}")  # fmt: skip
    if arguments.sheet:
        free = frozenset(row["uid"] for row in credits if row["licence"] == "Public domain")
        Image.fromarray(sheet(measured, free, list(networks))).save(arguments.sheet, optimize=True)
    if arguments.json:
        report = {
            **describe_machine(),
            "steps": config.optim.steps,
            "seconds": seconds,
            "bar_db": BAR_DB,
            "figures": figures,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
