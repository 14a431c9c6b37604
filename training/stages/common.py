"""Code that stages share: backbone, objects, network inputs from a batch, panels."""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffsplat.backbones import BACKBONES, BackboneSpec
from diffsplat.geometry.cameras import Cameras
from diffsplat.geometry.gaussians import Gaussians, grid_to_gaussians
from diffsplat.splats.render import Renders, render
from training.config.common import Data, RenderWeights, StageConfig
from training.data.dataset import Dataset
from training.data.record import TRAINING_MAPS, BrokenRecord
from training.data.sample import Batch, Sample, collate
from training.data.source import open_source, require
from training.data.stream import BatchStream
from training.losses import psnr
from training.rendering_loss import RenderingLoss

_VALIDATION_STREAM = 33
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PANEL_SCALE = 3  # panels are shown this many times larger than the images


def spec_of(config: StageConfig) -> BackboneSpec:
    """Backbone of a run.

    Raises:
        ValueError: its name is unknown.
    """
    if config.backbone not in BACKBONES:
        raise ValueError(f"backbone = {config.backbone!r} must be one of {', '.join(BACKBONES)}")
    return BACKBONES[config.backbone]


@functools.lru_cache(maxsize=4)
def dataset(data: Data, spec_name: str, validation: bool) -> Dataset:
    """The objects of a run."""
    geometry = BACKBONES[spec_name].geometry
    targets = dataclasses.replace(geometry, grid_size=data.target_size)
    return Dataset(
        open_source(data, geometry, validation),
        num_input_views=geometry.views,
        num_views=data.views,
        first_views=data.first_views,
        pixel_rule=geometry.unproject_pixel_rule,
        published_side=geometry.grid_size if data.compat and data.source != "procedural" else None,
        targets=open_source(data, targets, validation) if data.target_size else None,
    )


@contextmanager
def mixed_precision(config: StageConfig) -> Iterator[None]:
    """Context in which a stage runs the networks it trains: matrix products in `optim.precision`."""
    if config.optim.precision == "none":
        yield
        return
    device = torch.device(config.run.device).type
    with torch.autocast(device, _DTYPES[config.optim.precision]):
        # what checkpointing computes again in the backward pass would not see the choice of a kernel made here
        if device != "cpu" or config.optim.gradient_checkpointing:
            yield
            return
        # on a CPU the plain formula in bfloat16 is twice as fast as the fused kernel, forwards and backwards together
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # despite its name for all devices
        with sdpa_kernel(SDPBackend.MATH):
            yield


class ObjectStage:
    """Base of the stages that render objects."""

    name: str
    needs = TRAINING_MAPS  # of every object: maps, "caption"
    device = torch.device("cpu")  # the loop sets it before `build`
    updates = 0  # so far; set by the loop before each loss

    def __init__(self, config: StageConfig) -> None:
        self.config = config
        self.spec = spec_of(config)
        self.geometry = self.spec.geometry

    def stream(self, rank: int, world_size: int) -> BatchStream:
        """Training objects with input and novel views."""
        data = self.config.data
        objects = self.objects(validation=False)
        return BatchStream(
            objects, data.batch_size, self.config.run.seed, rank, world_size, workers=data.workers,
            prefetch=data.prefetch, skip_broken=data.skip_broken, blocks=objects.source.blocks(),
        )  # fmt: skip

    def validation_batch(self) -> Batch:
        """The same unseen objects, views and captions every time."""
        data = self.config.data
        objects = self.objects(validation=True)
        samples: list[Sample] = []
        for index in range(len(objects)):
            try:
                samples.append(objects.sample(index, np.random.default_rng([data.seed, _VALIDATION_STREAM, index])))
            except BrokenRecord:
                if not data.skip_broken:
                    raise
        return collate(samples)

    def objects(self, validation: bool) -> Dataset:
        """The objects of the run, which have what the stage needs."""
        objects = dataset(self.config.data, self.config.backbone, validation)
        require(objects.source, self.needs, self.name, self.config.data.source)
        objects.source.prepare()
        return objects

    def reconstruct(self, gsrecon: nn.Module, batch: Batch) -> Tensor:
        """The grid that GSRecon makes of the input views, [B, V, 12, H, W]."""
        views = self.geometry.views
        return gsrecon(input_images(batch, views), batch_cameras(batch, views))

    def gaussians(self, grid: Tensor, batch: Batch) -> Gaussians:
        """The Gaussians of a grid of the input views."""
        return grid_to_gaussians(grid, batch_cameras(batch, self.geometry.views), self.geometry)

    def render(self, gaussians: Gaussians, batch: Batch) -> Renders:
        """Gaussians seen by all cameras of the batch, at the size of its views."""
        side = batch.images_rgb.shape[-1]
        return render(gaussians, batch_cameras(batch), side, side, self.geometry)

    def rendering_loss(self, weights: RenderWeights) -> RenderingLoss:
        """The rendering loss of this stage's backbone; ValueError if weights of a perceptual term are missing."""
        return RenderingLoss(weights, self.geometry, self.config.compat)

    def view_psnrs(self, images: Tensor, batch: Batch) -> dict[str, float]:
        """PSNR of rendered images [B, V, 3, H, W] in dB, over the input views and over the novel ones."""
        views, truth = self.geometry.views, batch.images_rgb
        return {
            "psnr_input": psnr(images[:, :views], truth[:, :views]).item(),
            "psnr_novel": psnr(images[:, views:], truth[:, views:]).item(),
        }


def input_images(batch: Batch, views: int) -> Tensor:
    """Input of GSRecon: RGB, normals and coordinates of the first `views` views, [B, views, 9, H, W]."""
    return torch.cat([batch.images_rgb, batch.normals, batch.coords], dim=2)[:, :views]


def batch_cameras(batch: Batch, views: int | None = None) -> Cameras:
    """Cameras of all views, or of the first `views`, [B, V]."""
    return Cameras(batch.camera_to_world[:, :views], batch.intrinsics[:, :views])


def comparison_panel(*rows: Tensor, objects: int = 4) -> np.ndarray:
    """Rows of images, object by object.

    Args:
        rows: Any number of [B, V, 3, H, W] in [0, 1]; each adds one row of V images per object.
        objects: Largest number of objects shown.

    Returns:
        uint8 [H', W', 3].
    """
    stacked = torch.stack([row[:objects] for row in rows], dim=1)  # [B, R, V, 3, H, W]
    return image_grid(stacked.flatten(0, 1))


def image_grid(images: Tensor) -> np.ndarray:
    """[rows, columns, 3, H, W] in [0, 1] -> uint8 [rows * H * k, columns * W * k, 3], enlarged k times."""
    rows, columns, _, height, width = images.shape
    flat = images.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
    pixels = (flat.clamp(0, 1) * 255.0).round().to(torch.uint8).cpu().numpy()
    return pixels.repeat(_PANEL_SCALE, axis=0).repeat(_PANEL_SCALE, axis=1)
