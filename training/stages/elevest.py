"""ElevEst: DINOv2 and two heads estimate the elevation of the camera that took a picture; every view is an example.

A camera outside the range of the bins has no class. It is left out of the loss, counted, and named once; published
training ends there. Angles are the network's: negative is above the horizon.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from diffsplat.bundle import MANIFEST
from diffsplat.images.elevest import ElevEstConfig, build_elevest, elevation_losses, elevest_config
from diffsplat.images.official_dinov2 import load_official_dinov2
from diffsplat.images.prepare import elevation_input
from training.checkpoint import FINISHED, save_finished
from training.config.elevest import ElevationConfig
from training.data.dataset import Dataset
from training.data.sample import Batch
from training.data.source import open_source, require
from training.optim import decay_groups
from training.parents import Parent, open_parent
from training.stage import Evaluation
from training.stages.common import ObjectStage, mixed_precision

_PANEL_SIDE = 240  # pixels
_SHOWN = 4  # angles named in a message


class Examples(NamedTuple):
    """Views of all objects of a batch, one after the other."""

    images: Tensor  # [N, 3, S, S] as `elevation_input` makes them
    elevations_deg: Tensor  # [N] of the network's sign


class ElevationStage(ObjectStage):
    """Trains the backbone and the heads, or the heads alone."""

    name = "elevest"
    needs = frozenset({"rgb"})

    def __init__(self, config: ElevationConfig) -> None:
        super().__init__(config)
        self.settings = config
        self.start: Parent | None = None
        if config.start is not None and _holds_run(config.start):
            self.start = open_parent(config.start, "elevest")
            before = elevest_config(self.start.facts.get("elevest") or self.start.facts["spec"]["elevest"])
            if before != config.network:
                raise ValueError(f"start = {config.start}: was trained with network = {before}, not {config.network}")
        self._is_told = False  # whether views outside the bins were reported

    def build(self) -> nn.Module:
        """Network from random weights, from an official backbone, or from an earlier run."""
        config = self.settings
        self.network = build_elevest(config.network)
        if self.start is not None:
            self.start.load("elevest", self.network)
        elif config.start is not None:
            self.network.backbone = load_official_dinov2(config.start, config.network.backbone)
        self.network.requires_grad_(True).train()
        self.network.backbone.requires_grad_(not config.freeze_backbone)
        return self.network

    def param_groups(self) -> list[dict[str, Any]]:
        """Everything that is not frozen."""
        return decay_groups([self.network], self.config.optim.weight_decay)

    def objects(self, validation: bool) -> Dataset:
        """Objects by random views, the poles excepted, at the network's resolution."""
        data = self.config.data
        geometry = dataclasses.replace(self.geometry, grid_size=self.settings.network.input_size)
        source = open_source(data, geometry, validation)
        require(source, self.needs, self.name, data.source)
        source.prepare()
        return Dataset(source, num_input_views=1, num_views=data.views, picking="random")

    def validation_batch(self) -> Batch:
        """Unseen objects.

        Raises:
            ValueError: no camera of theirs lies in the range of the bins.
        """
        batch = super().validation_batch()
        if not self._inside(camera_elevations_deg(batch)).any():
            raise ValueError(f"network: no view of the validation objects lies in the bins' range, {self._range()}")
        return batch

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the bin and squared error within it; needs no noise."""
        given = self.examples(batch)
        inside = self._inside(given.elevations_deg)
        outside = {"outside": (~inside).sum()}
        self._report(given.elevations_deg[~inside])
        with mixed_precision(self.config):
            prediction = self.network(given.images[inside])
        if not inside.any():  # nothing to learn from
            return prediction.logits.sum() + prediction.offset_deg.sum(), outside
        losses = elevation_losses(
            self.network,
            prediction._replace(logits=prediction.logits.float(), offset_deg=prediction.offset_deg.float()),
            given.elevations_deg[inside],
            clamp_offset=self.config.compat,
            offset_weight=self.settings.offset_weight,
        )
        parts = {"bins": losses.bins.detach(), "offset": losses.offset.detach(), "error_deg": losses.error_deg}
        return losses.total, {**parts, **outside}

    def evaluate(self, batch: Batch, generator: torch.Generator) -> Evaluation:
        """Mean error in degrees over unseen objects, and every estimate against the truth."""
        given = self.examples(batch)
        with mixed_precision(self.config):
            estimates = self.network.internal_elevation_deg(self.network(given.images)).float()
        inside = self._inside(given.elevations_deg)
        errors = (estimates - given.elevations_deg)[inside].abs()
        scalars = {
            "error_deg": errors.mean().item(),
            "within_5_deg": (errors <= 5.0).float().mean().item(),
            "outside": float((~inside).sum()),
        }
        return Evaluation(scalars, {"estimate_against_truth": self._panel(estimates, given.elevations_deg)})

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        """Write the averaged network and its architecture, which a bundle's spec carries."""
        save_finished(
            out, {"elevest": self.network}, {**facts, "elevest": dataclasses.asdict(self.settings.network)}, {}
        )

    def examples(self, batch: Batch) -> Examples:
        """A batch as the network takes it, on its device."""
        images = elevation_input(batch.images_rgb.flatten(0, 1), self.settings.network.input_size)
        return Examples(images.to(self.device), camera_elevations_deg(batch).to(self.device))

    def _inside(self, elevations_deg: Tensor) -> Tensor:
        network = self.settings.network
        return (elevations_deg >= network.lowest_deg) & (elevations_deg <= network.highest_deg)

    def _report(self, elevations_deg: Tensor) -> None:
        """Say once that views are left out, and how to keep them; their number is logged as `outside`."""
        if self._is_told or not len(elevations_deg):
            return
        self._is_told = True
        shown = ", ".join(f"{value:.1f}" for value in elevations_deg[:_SHOWN].tolist())
        print(
            f"elevest: cameras at {shown} degrees lie outside the bins' range, {self._range()}: such views are left "
            "out and counted as `outside`; widen network.lowest-deg and network.highest-deg to keep them",
            flush=True,
        )

    def _range(self) -> str:
        network: ElevEstConfig = self.settings.network
        return f"{network.lowest_deg:g} .. {network.highest_deg:g} degrees (negative is above the horizon)"

    def _panel(self, estimates: Tensor, truths: Tensor) -> np.ndarray:
        """One dot per view: truth to the right, estimate upwards, both over the range of the bins."""
        network, side = self.settings.network, _PANEL_SIDE
        image = Image.new("RGB", (side, side), "white")
        draw = ImageDraw.Draw(image)
        draw.line((0, side, side, 0), "silver")
        span = network.highest_deg - network.lowest_deg
        for estimate, truth in zip(estimates.tolist(), truths.tolist(), strict=True):
            x = (truth - network.lowest_deg) / span * side
            y = side - (estimate - network.lowest_deg) / span * side
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), "steelblue")
        return np.asarray(image)


def camera_elevations_deg(batch: Batch) -> Tensor:
    """Elevations of all cameras of a batch, NEGATIVE above the horizon: [B * V] degrees."""
    positions = batch.camera_to_world[..., :3, 3].double()  # the world is y-up, the object at its origin
    return torch.asin(-positions[..., 1] / positions.norm(dim=-1)).mul(180.0 / math.pi).flatten().float()


def _holds_run(path: Path) -> bool:
    """Whether `path` is a run of ours or a bundle, rather than official weights."""
    return (path / FINISHED).is_dir() or (path / MANIFEST).is_file()
