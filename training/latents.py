"""Latents of every training object, computed once: they are deterministic (GSRecon, then the posterior's mean).

A few floats per object replace rendering, two networks and their time in every step of the diffusion stage.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.geometry.cameras import Cameras, latent_plucker
from diffsplat.splats.gsrecon import GSRecon
from diffsplat.splats.gsvae import GSVAE
from training.config.common import Data
from training.data.procedural.captions import draw_caption
from training.data.procedural.object_words import ObjectWords
from training.data.sample import collate
from training.data.stream import BatchStream
from training.report import with_time_left
from training.stages.common import batch_cameras, input_images, object_count, objects_between

_CHUNK = 32  # objects encoded together
_ORDER_STREAM, _CAPTION_STREAM = 41, 42


class LatentBatch(NamedTuple):
    """B objects as the denoiser's input."""

    latents: Tensor  # [B, V, C, h, w] clean, diffusion space
    plucker: Tensor  # [B, V, 6, h, w]
    cameras: Cameras  # [B, V]
    captions: tuple[str, ...]


class LatentCache(NamedTuple):
    """All objects of a data set from every allowed reference view, one view after the other."""

    latents: Tensor  # [N, V, C, h, w]
    plucker: Tensor  # [N, V, 6, h, w]
    cameras: Cameras  # [N, V]
    words: list[ObjectWords]  # [N]

    def __len__(self) -> int:
        return len(self.words)

    def batch(self, rows: Sequence[int], captions: Sequence[str]) -> LatentBatch:
        """The given rows with the given captions."""
        index = torch.as_tensor(np.asarray(rows))
        cameras = Cameras(*(values[index] for values in self.cameras))
        return LatentBatch(self.latents[index], self.plucker[index], cameras, tuple(captions))


@torch.no_grad()
def encode_objects(data: Data, spec: BackboneSpec, gsrecon: GSRecon, gsvae: GSVAE, validation: bool) -> LatentCache:
    """Encode every object of `data` from every one of its reference views, on the networks' device."""
    device = next(gsvae.parameters()).device
    views = spec.geometry.views
    latents, poses, intrinsics, words = [], [], [], []
    count = object_count(data, validation)
    chunks = [(view, start) for view in data.first_views for start in range(0, count, _CHUNK)]
    for first_view, start in with_time_left(chunks, f"latents of {count} objects"):
        shown = dataclasses.replace(data, first_views=(first_view,), views=views, pool_size=0)
        source = objects_between(shown, spec.name, validation, start, min(start + _CHUNK, count))
        samples = [source.sample(index, np.random.default_rng(0)) for index in range(len(source))]
        batch = collate(samples).to(device)
        cameras = batch_cameras(batch, views)
        latents.append(gsvae.encode(gsrecon(input_images(batch, views), cameras)).float().cpu())
        poses.append(cameras.camera_to_world.cpu())
        intrinsics.append(cameras.intrinsics.cpu())
        words += [made.words for made in source.objects]
    cameras = Cameras(torch.cat(poses), torch.cat(intrinsics))
    plucker = latent_plucker(cameras, spec.geometry, spec.latent_size)
    return LatentCache(torch.cat(latents), plucker, cameras, words)


def save_cache(path: Path, cache: LatentCache, origin: dict[str, Any]) -> None:
    """Write a cache atomically, together with its origin."""
    tensors = {"latents": cache.latents, "plucker": cache.plucker, **cache.cameras._asdict()}
    words = json.dumps([list(entry) for entry in cache.words])
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata={"origin": json.dumps(origin, sort_keys=True), "words": words},
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_cache(path: Path, origin: dict[str, Any]) -> LatentCache | None:
    """The cache at `path`, or None if it is missing or was computed from something else."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if metadata["origin"] != json.dumps(origin, sort_keys=True):
            return None
        words = [ObjectWords(*entry) for entry in json.loads(metadata["words"])]
        cameras = Cameras(file.get_tensor("camera_to_world"), file.get_tensor("intrinsics"))
        return LatentCache(file.get_tensor("latents"), file.get_tensor("plucker"), cameras, words)


class LatentStream(BatchStream):
    """A `BatchStream` over a cache, with the same kind of order and cursor; every visit draws new captions."""

    def __init__(self, cache: LatentCache, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        super().__init__(cache, batch_size, seed, rank, world_size)  # type: ignore[arg-type]
        self.cache = cache

    def __next__(self) -> LatentBatch:  # type: ignore[override]
        order = np.random.default_rng([self.seed, _ORDER_STREAM, self.epoch]).permutation(len(self.cache))
        start = (self.position * self.world_size + self.rank) * self.batch_size
        rows = order[start : start + self.batch_size].tolist()
        captions = []
        for row in rows:
            rng = np.random.default_rng([self.seed, _CAPTION_STREAM, self.epoch, row])
            captions.append(draw_caption(self.cache.words[row], rng))
        self.position += 1
        if self.position == self.batches_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        return self.cache.batch(rows, captions)
