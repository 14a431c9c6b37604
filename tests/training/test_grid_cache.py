"""Grids of a frozen GSRecon come back from the disk as they were made, and only for the views they were made of."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffsplat.splats.gsrecon import build_gsrecon
from tests.training.finished import Parents
from training.checkpoint import save_finished
from training.config.common import Data, RunOptions
from training.config.vae import VaeConfig
from training.data.sample import Batch
from training.stages.vae import VaeStage


def config(parents: Parents, folder: Path) -> VaeConfig:
    return VaeConfig(
        backbone="tiny_sd15",
        data=Data(objects=4, validation_objects=1, batch_size=2, views=5, pool_size=1, cache=folder / "cache"),
        run=RunOptions(out=folder / "run", threads=1),
        recon=parents.recon,
        cache_grids=True,
    )


@pytest.fixture
def stage(tiny_families: None, finished_parents: Callable[[str], Parents], tmp_path: Path) -> VaeStage:
    stage = VaeStage(config(finished_parents("sd15"), tmp_path))
    stage.build()
    return stage


def counted(stage: VaeStage, batch: Batch) -> tuple[Tensor, int]:
    """The grids of a batch, and how many objects GSRecon saw for them."""
    made: list[int] = []
    hook = stage.gsrecon.register_forward_hook(lambda _module, _inputs, grids: made.append(len(grids)))
    try:
        return stage._target_grid(batch), sum(made)
    finally:
        hook.remove()


def test_a_grid_is_made_once_and_comes_back_as_it_was(stage: VaeStage) -> None:
    batch = next(stage.stream(0, 1))
    first, made = counted(stage, batch)
    again, made_again = counted(stage, batch)
    assert (made, made_again) == (2, 0) and torch.equal(first, again)
    with torch.no_grad():
        direct = stage.reconstruct(stage.gsrecon, batch)
    assert first.dtype == torch.float32 and (first - direct).abs().max() < 2**-11  # float16 of values in -1 .. 1
    turned = Batch(*(values[::-1] if isinstance(values, tuple) else values.flip(0) for values in batch[:-1]))
    assert torch.equal(counted(stage, turned)[0], first.flip(0))


def test_other_views_and_another_gsrecon_have_grids_of_their_own(stage: VaeStage, tmp_path: Path) -> None:
    batch = next(stage.stream(0, 1))
    assert counted(stage, batch)[1] == 2
    moved = batch.camera_to_world.clone()
    moved[0, 1, 1, 3] += 0.1
    assert counted(stage, batch._replace(camera_to_world=moved))[1] == 1
    seen = batch.images_rgb.clone()
    seen[1, 0, 0, 0, 0] = 0.5
    assert counted(stage, batch._replace(images_rgb=seen))[1] == 1
    torch.manual_seed(1)
    (tmp_path / "recon").mkdir()
    save_finished(tmp_path / "recon", {"gsrecon": build_gsrecon(stage.spec)}, {"steps": 0}, {})
    other = VaeStage(dataclasses.replace(stage.config, recon=tmp_path / "recon"))
    other.build()
    assert counted(other, batch)[1] == 2


def test_a_damaged_grid_is_named(stage: VaeStage, tmp_path: Path) -> None:
    batch = next(stage.stream(0, 1))
    stage._target_grid(batch)
    for path in (tmp_path / "cache").glob("grids-*/*/*.npy"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"\.npy: cannot be read: .*; remove it, and it is computed again"):
        stage._target_grid(batch)
