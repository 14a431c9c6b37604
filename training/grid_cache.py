"""Grids that a frozen GSRecon makes, kept on disk: procedural objects are rendered once, and come back with the same
input views, so that most of an autoencoder's steps need no reconstruction.

A grid is found by what went into it, and rounded to float16 whether it was just made or read, so that a run does not
depend on which it was.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.data.sample import Batch
from training.data.storage import replace_file
from training.stages.common import batch_cameras, input_images


class GridCache:
    """Grids by input views.

    Args:
        cache: Folder of caches; the grids get one of their own in it.
        origin: JSON facts that decide what GSRecon makes of given views.
        views: Number of input views.
        reconstruct: GSRecon: a batch -> [B, V, 12, H, W].
    """

    def __init__(self, cache: Path, origin: dict[str, Any], views: int, reconstruct: Callable[[Batch], Tensor]) -> None:
        digest = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
        self.folder = cache / f"grids-{digest[:16]}"
        self._views = views
        self._reconstruct = reconstruct

    @torch.no_grad()
    def grids(self, batch: Batch) -> Tensor:
        """The grids of a batch's input views, [B, V, 12, H, W] float32, on the batch's device.

        Raises:
            StorageError: a grid cannot be written.
            ValueError: a file is damaged; the message names it.
        """
        singles = [batch.rows(slice(row, row + 1)) for row in range(len(batch.uids))]
        return torch.stack([self._grid(single) for single in singles]).to(batch.images_rgb.device).float()

    def _grid(self, single: Batch) -> Tensor:
        """Of one object, which is reconstructed alone: sums in a batch depend on its size."""
        cameras = batch_cameras(single, self._views)
        inputs = (input_images(single, self._views), cameras.camera_to_world, cameras.intrinsics)
        key = hashlib.blake2b(digest_size=16)
        for values in inputs:
            key.update(values.cpu().contiguous().numpy().tobytes())
        name = key.hexdigest()
        path = self.folder / name[:2] / f"{name}.npy"
        if path.is_file():
            try:
                return torch.from_numpy(np.load(path))
            except (ValueError, EOFError, OSError) as error:
                raise ValueError(f"{path}: cannot be read: {error}; remove it, and it is computed again") from error
        grid = self._reconstruct(single)[0].half().cpu()
        replace_file(path, lambda temporary: _save(temporary, grid.numpy()))
        return grid


def _save(path: Path, values: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to a name
        np.save(file, values)
