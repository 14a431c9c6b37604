"""Latents of every training object, computed once: they are deterministic (GSRecon, then the posterior's mean).

A few floats per object replace rendering, two networks and their time in every step of the diffusion stage. They lie in
a folder of files that appear one by one, so that an interrupted computation continues.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.geometry.cameras import Cameras, latent_plucker
from diffsplat.splats.gsrecon import GSRecon
from diffsplat.splats.gsvae import GSVAE
from training.data.dataset import Dataset
from training.data.record import BrokenRecord
from training.data.sample import Sample, collate
from training.data.source import ObjectSource
from training.data.storage import replace_file
from training.data.stream import BatchStream
from training.report import with_time_left
from training.stages.common import batch_cameras, input_images

_CHUNK = 32  # objects encoded together, into one file
_ORIGIN = "origin.json"
_ORDER_STREAM, _CAPTION_STREAM = 41, 42


class LatentBatch(NamedTuple):
    """B objects as the denoiser's input."""

    latents: Tensor  # [B, V, C, h, w] clean, diffusion space
    plucker: Tensor  # [B, V, 6, h, w]
    cameras: Cameras  # [B, V]
    captions: tuple[str, ...]


class LatentCache(NamedTuple):
    """Objects of a source from every allowed reference view, one view after the other."""

    latents: Tensor  # [N, V, C, h, w]
    plucker: Tensor  # [N, V, 6, h, w]
    cameras: Cameras  # [N, V]
    objects: Tensor  # [N] number of each row's object in the source

    def __len__(self) -> int:
        return len(self.objects)

    def batch(self, rows: Sequence[int], captions: Sequence[str]) -> LatentBatch:
        """The given rows with the given captions."""
        index = torch.as_tensor(np.asarray(rows))
        cameras = Cameras(*(values[index] for values in self.cameras))
        return LatentBatch(self.latents[index], self.plucker[index], cameras, tuple(captions))


def cached_latents(
    folder: Path,
    objects: Dataset,
    first_views: Sequence[int],
    spec: BackboneSpec,
    networks: tuple[GSRecon, GSVAE],
    origin: dict[str, Any],
    skip_broken: bool = False,
) -> LatentCache:
    """Latents of every object from every reference view; those that `folder` lacks are computed and written there.

    Args:
        folder: Files of `_CHUNK` objects; emptied if it was computed from something else.
        objects: What to encode.
        first_views: Reference views.
        spec: Geometry and size of the latents.
        networks: On the device that computes.
        origin: JSON facts that decide the latents.
        skip_broken: Leave out objects that cannot be read.

    Raises:
        BrokenRecord: an object cannot be read.
        StorageError: a file cannot be written.
    """
    facts = {**origin, "objects": objects.source.identity(), "first_views": list(first_views)}
    text = json.dumps(facts, sort_keys=True).encode()
    if not (folder / _ORIGIN).is_file() or (folder / _ORIGIN).read_bytes() != text:
        shutil.rmtree(folder, ignore_errors=True)
        _write(folder / _ORIGIN, text)
    chunks = [(view, start) for view in first_views for start in range(0, len(objects), _CHUNK)]
    paths = {(view, start): folder / f"{view:02}-{start:07}.safetensors" for view, start in chunks}
    missing = [chunk for chunk in chunks if not paths[chunk].is_file()]
    if missing:
        objects.source.prepare()
    for view, start in with_time_left(missing, f"latents of {len(objects)} objects") if missing else ():
        rows = range(start, min(start + _CHUNK, len(objects)))
        tensors = _encode(list(_samples(objects, rows, view, skip_broken)), spec, networks)
        _write(paths[view, start], save(tensors))
    parts = [part for part in (_load(paths[chunk]) for chunk in chunks) if len(part["objects"])]
    if not parts:
        raise BrokenRecord(f"none of the {len(objects)} objects can be read from the views {tuple(first_views)}")
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    cameras = Cameras(whole["camera_to_world"], whole["intrinsics"])
    return LatentCache(
        whole["latents"], latent_plucker(cameras, spec.geometry, spec.latent_size), cameras, whole["objects"]
    )


def _samples(objects: Dataset, rows: range, view: int, skip_broken: bool) -> Iterator[tuple[int, Sample]]:
    for row in rows:
        try:
            yield row, objects.seen_from(row, view)
        except BrokenRecord as error:
            if not skip_broken:
                raise
            Console(stderr=True).print(f"broken object, left out: {error}", highlight=False, soft_wrap=True)


@torch.no_grad()
def _encode(
    samples: list[tuple[int, Sample]], spec: BackboneSpec, networks: tuple[GSRecon, GSVAE]
) -> dict[str, Tensor]:
    """Latents, cameras and numbers of a chunk's objects."""
    gsrecon, gsvae = networks
    views = spec.geometry.views
    numbers = torch.tensor([row for row, _ in samples], dtype=torch.int64)
    if not samples:
        empty = torch.zeros(0)
        return {"latents": empty, "camera_to_world": empty, "intrinsics": empty, "objects": numbers}
    batch = collate([sample for _, sample in samples]).to(next(gsvae.parameters()).device)
    cameras = batch_cameras(batch, views)
    latents = gsvae.encode(gsrecon(input_images(batch, views), cameras)).float()
    tensors = {"latents": latents, **cameras._asdict(), "objects": numbers}
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _write(path: Path, data: bytes) -> None:
    replace_file(path, lambda temporary: temporary.write_bytes(data))


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; remove it, and it is computed again") from error


class LatentStream(BatchStream):
    """A `BatchStream` over a cache, with the same kind of order and cursor; every visit draws new captions."""

    def __init__(
        self, cache: LatentCache, source: ObjectSource, batch_size: int, seed: int, rank: int, world_size: int
    ) -> None:
        super().__init__(cache, batch_size, seed, rank, world_size)  # type: ignore[arg-type]
        self.cache = cache
        self.objects = source

    def __next__(self) -> LatentBatch:  # type: ignore[override]
        order = np.random.default_rng([self.seed, _ORDER_STREAM, self.epoch]).permutation(len(self.cache))
        start = (self.position * self.world_size + self.rank) * self.batch_size
        rows = order[start : start + self.batch_size].tolist()
        captions = []
        for row in rows:
            rng = np.random.default_rng([self.seed, _CAPTION_STREAM, self.epoch, row])
            captions.append(self.objects.caption(int(self.cache.objects[row]), rng))
        self.position += 1
        if self.position == self.batches_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        return self.cache.batch(rows, captions)
