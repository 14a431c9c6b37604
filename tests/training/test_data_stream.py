"""The cached data set and its resumable walk."""

from typing import Any

import numpy as np
import pytest
import torch

from training.data.dataset import Dataset
from training.data.procedural.source import ProceduralSource
from training.data.stream import BatchStream


def make() -> Dataset:
    source = ProceduralSource(0, 11, 16, pool_size=3, first_views=(0, 27))
    return Dataset(source, num_views=6, first_views=(0, 27))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return make()


def with_targets() -> Dataset:
    targets = ProceduralSource(0, 11, 32, pool_size=3, first_views=(0, 27))
    return Dataset(make().source, num_views=6, first_views=(0, 27), targets=targets)


def assert_same(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_batch_has_the_documented_shapes_and_ranges(dataset: Dataset):
    batch = next(BatchStream(dataset, 3, seed=1))
    assert batch.images_rgb.shape == batch.normals.shape == batch.coords.shape == (3, 6, 3, 16, 16)
    assert batch.alphas.shape == batch.depths.shape == (3, 6, 1, 16, 16)
    assert batch.camera_to_world.shape == (3, 6, 4, 4) and batch.intrinsics.shape == (3, 6, 4)
    assert len(batch.captions) == len(batch.uids) == 3
    for tensor in batch[:7]:
        assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all()
    empty = (batch.alphas == 0).expand_as(batch.images_rgb)
    for maps in (batch.images_rgb, batch.normals, batch.coords):
        assert (maps[empty] == 1.0).all(), "white where there is nothing"
        assert maps.min() >= 0.0 and maps.max() <= 1.0
    radius = batch.camera_to_world[:, 0, :3, 3].norm(dim=-1)
    torch.testing.assert_close(radius, torch.full((3,), 1.4))
    torch.testing.assert_close(batch.camera_to_world[:, 0, 0, 3], torch.zeros(3))  # azimuth 0
    assert batch.to("cpu").captions == batch.captions


def test_targets_are_the_same_views_of_another_size(dataset: Dataset):
    """They change nothing else of a batch, and are divided as it is."""
    plain, batch = (next(BatchStream(objects, 3, seed=1)) for objects in (dataset, with_targets()))
    assert plain.truth is plain and batch.truth is batch.targets
    assert_same(plain[:-1], batch[:-1])
    targets = batch.truth
    assert targets.images_rgb.shape == (3, 6, 3, 32, 32) and targets.alphas.shape == (3, 6, 1, 32, 32)
    torch.testing.assert_close(targets.camera_to_world, batch.camera_to_world)
    assert (targets.captions, targets.uids) == (batch.captions, batch.uids)
    shrunk = torch.nn.functional.avg_pool2d(targets.alphas.flatten(0, 1), 2)
    assert (shrunk - batch.alphas.flatten(0, 1)).abs().mean() < 0.02
    cut = batch.to("cpu").rows(slice(1, 2))
    assert cut.uids == batch.uids[1:2] and torch.equal(cut.truth.images_rgb, targets.images_rgb[1:2])


def test_input_views_stand_at_quarter_turns(dataset: Dataset):
    for seed in range(4):
        sample = dataset.sample(seed, np.random.default_rng(seed))
        x, _, z = sample.camera_to_world[:4, :3, 3].T
        azimuths = torch.rad2deg(torch.atan2(x, z)) % 360
        torch.testing.assert_close(azimuths, torch.tensor([0.0, 90.0, 180.0, 270.0]), atol=1e-3, rtol=0)


def test_an_epoch_shows_every_object_once_and_the_next_in_another_order(dataset: Dataset):
    stream = BatchStream(dataset, 1, seed=1)
    epochs = [[next(stream).uids[0] for _ in range(11)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(map(dataset.source.uid, range(11)))
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("taken", [0, 2, 3, 5])
def test_resume_is_exact_in_the_middle_and_at_the_end_of_an_epoch(dataset: Dataset, taken: int):
    stream = BatchStream(dataset, 3, seed=4)
    for _ in range(taken):
        next(stream)
    state = stream.state_dict()
    fresh = BatchStream(make(), 3, seed=4)
    fresh.load_state_dict(state)
    for _ in range(5):
        assert_same(next(stream), next(fresh))


def test_ranks_divide_the_global_batch(dataset: Dataset):
    whole = BatchStream(dataset, 4, seed=2)
    halves = [BatchStream(dataset, 2, seed=2, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(4):
        parts = [next(half) for half in halves]
        together = next(whole)
        assert together.uids == parts[0].uids + parts[1].uids
        assert torch.equal(together.images_rgb, torch.cat([part.images_rgb for part in parts]))
    assert halves[0].state_dict() == halves[1].state_dict() == whole.state_dict()


def test_seeds_and_ranges_of_objects_differ(dataset: Dataset):
    assert next(BatchStream(dataset, 3, seed=1)).uids != next(BatchStream(dataset, 3, seed=2)).uids
    later = ProceduralSource(0, 3, 8, first_index=11)
    assert not set(map(later.uid, range(3))) & set(map(dataset.source.uid, range(11)))


def test_bad_arguments_are_named(dataset: Dataset):
    with pytest.raises(ValueError, match="batch_size = 12"):
        BatchStream(dataset, 12, seed=0)
    with pytest.raises(ValueError, match="rank = 2"):
        BatchStream(dataset, 1, seed=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="seed = 1"):
        BatchStream(dataset, 3, seed=0).load_state_dict(BatchStream(dataset, 3, seed=1).state_dict())
    with pytest.raises(ValueError, match="count = 0"):
        ProceduralSource(0, 0, 8)
    with pytest.raises(ValueError, match="view = 25"):
        ProceduralSource(0, 1, 8, first_views=(25,))
    with pytest.raises(ValueError, match="num_input_views = 9"):
        Dataset(dataset.source, num_input_views=9)
