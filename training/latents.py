"""Latents of every training object, computed once: they are deterministic (GSRecon, then the posterior's mean).

A few floats per object replace rendering, two networks and their time in every step of the diffusion stage. They lie in
a folder of files that appear one by one, so that an interrupted computation continues, and that are mapped into memory:
latents of 83,000 objects from every view of their rings take 200 GB.
"""

import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.geometry.cameras import Cameras, latent_plucker
from diffsplat.images.vae_encoder import ImageEncoder
from diffsplat.splats.gsrecon import GSRecon
from diffsplat.splats.gsvae import GSVAE
from training.data.control_maps import ControlMaps
from training.data.dataset import Dataset
from training.data.record import BrokenRecord
from training.data.sample import Batch, Sample, collate
from training.data.storage import replace_file
from training.data.stream import BatchStream
from training.report import with_time_left
from training.stages.common import batch_cameras, input_images

_CHUNK = 32  # objects encoded together, into one file
_ORIGIN = "origin.json"
_OPEN_FILES = 256  # at once, while training


class LatentBatch(NamedTuple):
    """B objects as the denoiser's input."""

    latents: Tensor  # [B, V, C, h, w] clean, diffusion space
    plucker: Tensor  # [B, V, 6, h, w]
    cameras: Cameras  # [B, V]
    captions: tuple[str, ...]
    uids: tuple[str, ...]
    image_moments: Tensor | None = None  # [B, 2, C, h, w] mean and deviation of view 0's image, for image models
    views: Batch | None = None  # true views, the input views first, for a rendering loss
    maps: Tensor | None = None  # [B, 3, S, S] control maps of view 0, for a ControlNet


class EncoderNetworks(NamedTuple):
    """Frozen networks that make what is cached."""

    gsrecon: GSRecon
    gsvae: GSVAE
    image_encoder: ImageEncoder | None = None  # for image models


class LatentCache:
    """Objects of a source from every allowed reference view, read from files row by row as they are asked for.

    Args:
        paths: Files that `cached_latents` wrote, in the order of the rows.
        spec: Geometry and size of the latents.

    Raises:
        ValueError: a file is damaged; the message names it.
    """

    def __init__(self, paths: Sequence[Path], spec: BackboneSpec) -> None:
        self._spec = spec
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(_open)
        places: list[tuple[Path, int]] = []
        objects, first_views = [], []
        for path in paths:
            file = _open(path)
            numbers = file.get_tensor("objects")
            if len(numbers):
                objects.append(numbers)
                first_views.append(file.get_tensor("first_views"))
                places += [(path, row) for row in range(len(numbers))]
        self._places = places
        self.objects = torch.cat(objects) if objects else torch.zeros(0, dtype=torch.int64)  # [N] row -> object
        self.first_views = torch.cat(first_views) if first_views else self.objects  # [N] row -> reference view

    def __len__(self) -> int:
        return len(self._places)

    def batch(
        self, rows: Sequence[int], captions: Sequence[str], uids: Sequence[str], views: Batch | None = None
    ) -> LatentBatch:
        """The given rows with the given captions."""
        columns: dict[str, list[Tensor]] = {}
        for row in rows:
            path, at = self._places[row]
            file = self._open(path)
            for name in file.keys():  # noqa: SIM118 - not a mapping
                columns.setdefault(name, []).append(file.get_slice(name)[at : at + 1])
        read = {name: torch.cat(values) for name, values in columns.items()}
        cameras = Cameras(read["camera_to_world"], read["intrinsics"])
        plucker = latent_plucker(cameras, self._spec.geometry, self._spec.latent_size)
        moments = read.get("image_moments")
        return LatentBatch(read["latents"], plucker, cameras, tuple(captions), tuple(uids), moments, views)


def cached_latents(
    folder: Path,
    objects: Dataset,
    first_views: Sequence[int],
    spec: BackboneSpec,
    networks: EncoderNetworks,
    origin: dict[str, Any],
    skip_broken: bool = False,
    views_each: int = 0,
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
        views_each: How many of the reference views each object is encoded from, by turns; 0: all of them.

    Raises:
        BrokenRecord: an object cannot be read.
        StorageError: a file cannot be written.
    """
    facts = {**origin, "objects": objects.source.identity(), "first_views": list(first_views)}
    if views_each:
        facts["views_each"] = views_each
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
        place, turns = first_views.index(view), len(first_views)
        whole = range(start, min(start + _CHUNK, len(objects)))
        rows = [row for row in whole if not views_each or (place - row) % turns < views_each]
        tensors = _encode(list(_samples(objects, rows, view, skip_broken)), view, spec, networks)
        _write(paths[view, start], save(tensors))
    cache = LatentCache([paths[chunk] for chunk in chunks], spec)
    if not len(cache):
        raise BrokenRecord(f"none of the {len(objects)} objects can be read from the views {tuple(first_views)}")
    return cache


def _samples(objects: Dataset, rows: Sequence[int], view: int, skip_broken: bool) -> Iterator[tuple[int, Sample]]:
    for row in rows:
        try:
            yield row, objects.seen_from(row, view)
        except BrokenRecord as error:
            if not skip_broken:
                raise
            Console(stderr=True).print(f"broken object, left out: {error}", highlight=False, soft_wrap=True)


@torch.no_grad()
def _encode(
    samples: list[tuple[int, Sample]], first_view: int, spec: BackboneSpec, networks: EncoderNetworks
) -> dict[str, Tensor]:
    """Latents, cameras and numbers of a chunk's objects; image moments where there is an image encoder."""
    views = spec.geometry.views
    numbers = torch.tensor([row for row, _ in samples], dtype=torch.int64)
    if not samples:
        return {"objects": numbers}
    batch = collate([sample for _, sample in samples]).to(next(networks.gsvae.parameters()).device)
    cameras = batch_cameras(batch, views)
    latents = networks.gsvae.encode(networks.gsrecon(input_images(batch, views), cameras)).float()
    first_views = torch.full_like(numbers, first_view)
    tensors = {"latents": latents, **cameras._asdict(), "objects": numbers, "first_views": first_views}
    if networks.image_encoder is not None:
        size = [spec.image_size] * 2
        images = batch.images_rgb[:, 0]
        if list(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        tensors["image_moments"] = torch.stack(networks.image_encoder.moments(images), dim=1).float()
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _write(path: Path, data: bytes) -> None:
    replace_file(path, lambda temporary: temporary.write_bytes(data))


def _open(path: Path) -> Any:
    """A file of the cache, memory mapped."""
    try:
        return safe_open(path, "pt").__enter__()
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; remove it, and it is computed again") from error


class LatentStream(BatchStream):
    """A `BatchStream` over a cache; every visit draws a new caption and, for a rendering loss, new views.

    Args:
        cache: Of the objects.
        objects: Where captions and true views come from.
        with_views: Whether batches have true views.
        maps: Control maps of the objects, for a ControlNet.
        **options: Of `BatchStream`.
    """

    def __init__(
        self, cache: LatentCache, objects: Dataset, with_views: bool, maps: ControlMaps | None = None, **options: Any
    ) -> None:
        super().__init__(_CachedObjects(cache, objects, with_views, maps), **options)  # type: ignore[arg-type]
        self.cache = cache

    def collate(self, samples: Sequence[Any]) -> LatentBatch:  # type: ignore[override]
        """One batch of `_CachedObject`."""
        views = None if samples[0].views is None else collate([sample.views for sample in samples])
        rows, captions, uids = ([getattr(sample, name) for sample in samples] for name in ("row", "caption", "uid"))
        batch = self.cache.batch(rows, captions, uids, views)
        return batch if samples[0].map is None else batch._replace(maps=torch.stack([one.map for one in samples]))


class _CachedObject(NamedTuple):
    row: int
    caption: str
    uid: str
    views: Sample | None
    map: Tensor | None


class _CachedObjects:
    """Rows of a cache as the samples of a stream."""

    def __init__(self, cache: LatentCache, objects: Dataset, with_views: bool, maps: ControlMaps | None) -> None:
        self.cache = cache
        self.objects = objects
        self.with_views = with_views
        self.maps = maps

    def __len__(self) -> int:
        return len(self.cache)

    def sample(self, index: int, rng: np.random.Generator) -> _CachedObject:
        """Row `index` of the cache."""
        number = int(self.cache.objects[index])
        source = self.objects.source
        first_view = int(self.cache.first_views[index])
        views = self.objects.sample(number, rng, first_view) if self.with_views else None
        caption = source.caption(number, rng) if views is None else views.caption
        shown = None if self.maps is None else self.maps.of(number, first_view)
        return _CachedObject(index, caption, source.uid(number), views, shown)
