"""Stored objects read the same in every form; what is broken is named."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffsplat.backbones import PICO
from tests.training.stored_objects import (
    COUNT,
    FORMS,
    SIDE,
    VIEWS,
    caption_of,
    packed_object,
    records,
    uid_of,
    write_folder,
    write_form,
)
from training.config.common import Data
from training.data.dataset import Dataset
from training.data.open_path import open_store
from training.data.record import BrokenRecord, PackedViews
from training.data.record_source import RecordSource
from training.data.resize import shrink_views
from training.data.source import ObjectSource, open_source, require
from training.data.stream import BatchStream
from training.data.tar_store import INDEX_SUFFIX, write_tar

GEOMETRY = dataclasses.replace(PICO.geometry, grid_size=SIDE)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, packed: list[PackedViews]) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_form("webdataset", root, packed)
    return root


def data_of(root: Path, **options: object) -> Data:
    return dataclasses.replace(Data(source=str(root), objects=0, validation_objects=2), **options)  # type: ignore[arg-type]


def number_of(uid: str) -> int:
    return int(uid.rpartition("/")[2]) - 10000


def everything(source: ObjectSource) -> dict[str, int]:
    return {source.uid(index): index for index in range(len(source))}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_objects(form: str, tmp_path: Path, packed: list[PackedViews]) -> None:
    write_form(form, tmp_path, packed)
    sources = [open_source(data_of(tmp_path), GEOMETRY, validation) for validation in (False, True)]
    uids = [uid for source in sources for uid in everything(source)]
    assert sorted(uids) == sorted(map(uid_of, range(COUNT))) and len(sources[1]) == 2
    for source in sources:
        for uid, index in everything(source).items():
            number = number_of(uid)
            assert source.usable_views(index) == VIEWS
            read = source.views(index, (27, 3, 25))
            expected = packed[number].select((27, 3, 25))
            np.testing.assert_array_equal(read.rgba, expected.rgba)
            np.testing.assert_allclose(read.camera_to_world_zup, expected.camera_to_world_zup, atol=1e-12)
            shown = expected.rgba[..., 3] > 0
            steps = np.abs(read.normal_depth.astype(int) - expected.normal_depth)[shown]
            assert steps.max() <= (1 if "gobjaverse" in form else 0)  # a float holds a code to half a step
            maps = {"rgb", "normal", "depth", "albedo", "metallic_roughness"}
            assert source.provides() == maps | (set() if "gobjaverse" in form else {"caption"})
            assert source.caption(index, None) == ("" if "gobjaverse" in form else caption_of(number))
    identities = [json.dumps(source.identity()) for source in sources]
    assert identities[0] != identities[1]


def test_materials_are_read_where_they_are_wanted(shards: Path, packed: list[PackedViews]) -> None:
    source = RecordSource(open_store(shards), [1], maps={"rgb", "albedo", "metallic_roughness"})
    read = source.views(0, (2, 9))
    assert read.albedo is not None and read.metallic_roughness is not None and read.normal_depth.shape[-1] == 0
    np.testing.assert_array_equal(read.albedo, packed[1].rgba[[2, 9], ..., :3])
    np.testing.assert_array_equal(read.metallic_roughness, packed[1].rgba[[2, 9], ..., 1:])


def test_an_index_is_made_where_there_is_none(tmp_path: Path, packed: list[PackedViews]) -> None:
    write_form("webdataset", tmp_path, packed)
    made = [tmp_path / f"0000{number}.tar{INDEX_SUFFIX}" for number in range(2)]
    stored = [json.loads(path.read_text()) for path in made]
    for path in made:
        path.unlink()
    assert everything(open_source(data_of(tmp_path), GEOMETRY, True))
    assert [json.loads(path.read_text()) for path in made] == stored
    made[0].write_text("{}")
    assert len(open_store(tmp_path)) == COUNT


def test_lists_captions_and_held_out_objects(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("10001\n0/10002\n10003\n10004\nnobody\n")
    (tmp_path / "held.json").write_text(json.dumps(["10003", "10004"]))
    (tmp_path / "map.json").write_text(json.dumps({uid_of(n): f"000-023/hash{n}.glb" for n in range(COUNT)}))
    (tmp_path / "captions.csv").write_text("\n".join(f'hash{n},"a thing, {n}"' for n in range(1, COUNT)))
    data = data_of(
        shards, ids=tmp_path / "ids.txt", validation_ids=tmp_path / "held.json", uid_map=tmp_path / "map.json",
        captions=tmp_path / "captions.csv",
    )  # fmt: skip
    train, held = (open_source(data, GEOMETRY, validation) for validation in (False, True))
    assert set(everything(train)) == {"1/10001", "0/10002"} and set(everything(held)) == {"1/10003", "0/10004"}
    assert train.caption(everything(train)["0/10002"], None) == "a thing, 2"
    without_list = dataclasses.replace(data, ids=None, validation_ids=None)
    with pytest.raises(ValueError, match="no caption of 1 of 6 objects, such as '0/10000'"):
        open_source(without_list, GEOMETRY, False)
    left = open_source(dataclasses.replace(without_list, skip_broken=True), GEOMETRY, False)
    assert len(left) == COUNT - 1 - 2


def test_wrong_paths_and_lists_are_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.source = /nowhere: does not exist"):
        open_source(data_of(Path("/nowhere")), GEOMETRY, False)
    with pytest.raises(ValueError, match="holds no objects"):
        open_source(data_of(tmp_path), GEOMETRY, False)
    (tmp_path / "ids.txt").write_text("somebody\n")
    with pytest.raises(ValueError, match=r"data.ids = .*lists none of the 6 objects; it begins with 'somebody'"):
        open_source(data_of(shards, ids=tmp_path / "ids.txt"), GEOMETRY, False)
    with pytest.raises(ValueError, match="none is left to train on"):
        open_source(data_of(shards, validation_objects=6), GEOMETRY, False)
    with pytest.raises(ValueError, match="first_views.*view = 25 lies on no ring"):
        Dataset(open_source(data_of(shards), GEOMETRY, False), first_views=(25,))


def test_compat_resizes_the_maps_of_full_size_images(shards: Path) -> None:
    small = dataclasses.replace(GEOMETRY, grid_size=SIDE // 2)
    plain, full = (open_source(data_of(shards, compat=compat), small, False) for compat in (False, True))
    assert plain.views(0, (0,)).rgba.shape[1] == SIDE // 2 and full.views(0, (0,)).rgba.shape[1] == SIDE
    draws = [np.random.default_rng(0) for _ in range(2)]
    published = Dataset(full, num_views=5, published_side=SIDE // 2).sample(0, draws[0])
    ours = Dataset(plain, num_views=5).sample(0, draws[1])
    assert published.normals.shape == ours.normals.shape and published.uid == ours.uid
    edge = ((ours.alphas > 0.2) & (ours.alphas < 0.8)).expand_as(ours.coords)
    assert published.coords[edge].mean() > ours.coords[edge].mean(), "edges fade twice"


def test_cameras_that_look_elsewhere_are_refused(tmp_path: Path, packed: list[PackedViews]) -> None:
    cameras = packed[0].camera_to_world_zup.copy()
    cameras[7, :3, 1:3] *= -1  # OpenGL's axes
    write_tar(tmp_path / "0.tar", records([packed[0]._replace(camera_to_world_zup=cameras)]))
    objects = Dataset(RecordSource(open_store(tmp_path), [0], SIDE))
    with pytest.raises(BrokenRecord, match=r"0/10000: the camera of view \d of the sample looks 180.0 degrees past"):
        objects.seen_from(0, 1)


def test_missing_maps_name_the_stage_and_the_map(tmp_path: Path, packed: list[PackedViews]) -> None:
    bare = [views._replace(normal_depth=views.normal_depth[..., :0], albedo=None) for views in packed]
    write_tar(tmp_path / "0.tar", records(bare, captions=False))
    source = open_source(data_of(tmp_path), GEOMETRY, False)
    with pytest.raises(ValueError, match=r"stage diffusion needs caption, depth, normal .*has only metallic_r.*, rgb"):
        require(source, frozenset({"rgb", "normal", "depth", "caption"}), "diffusion", "x")
    sample = Dataset(source, num_views=5).sample(0, np.random.default_rng(0))
    assert sample.images_rgb.shape == (5, 3, SIDE, SIDE) and sample.normals.shape[1] == sample.coords.shape[1] == 0


def test_shrinking_keeps_surfaces_free_of_background() -> None:
    large = packed_object(3, 4 * SIDE).select((0, 7))
    small = shrink_views(large, SIDE)
    alpha = small.rgba[..., 3]
    blocks = large.rgba[..., 3].reshape(2, SIDE, 4, SIDE, 4).astype(float).mean((2, 4))
    assert np.abs(alpha - blocks).max() <= 0.5 and ((alpha > 0) & (alpha < 255)).any()
    edge = (alpha > 64) & (alpha < 255)
    inside = large.normal_depth[..., 3][large.rgba[..., 3] == 255]
    depth = small.normal_depth[..., 3]
    assert depth[edge].min() >= 0.97 * inside.min() and depth[edge].max() <= 1.03 * inside.max()
    normals = small.normal_depth[..., :3][alpha > 0] / 65535 * 2 - 1
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1.0, atol=1e-3)
    odd = shrink_views(large, 2 * SIDE - 5)
    assert odd.rgba.shape == (2, 2 * SIDE - 5, 2 * SIDE - 5, 4) and np.abs(odd.rgba[..., 3].mean() - alpha.mean()) < 2
    with pytest.raises(BrokenRecord, match="smaller than the 97"):
        shrink_views(large, 97)


def broken_shards(root: Path, packed: list[PackedViews]) -> None:
    made = records(packed)
    made[1]["00006.png"] = b"no picture"
    del made[2]["00012_nd.png"]
    made[4] = {key: value for key, value in made[4].items() if not key.endswith(".json")}
    write_tar(root / "0.tar", made)


def test_a_broken_record_ends_the_run_or_is_replaced_and_counted(tmp_path: Path, packed: list[PackedViews]) -> None:
    broken_shards(tmp_path, packed)
    source = RecordSource(open_store(tmp_path), range(COUNT), SIDE)
    objects = Dataset(source, num_views=8, first_views=(0,))
    with pytest.raises(BrokenRecord, match="'00012_nd.png'|'00006.png'|0/10004: .*missing"):
        [next(BatchStream(objects, 6, seed=1)) for _ in range(2)]
    streams = [BatchStream(objects, 3, seed=1, workers=workers, skip_broken=True) for workers in (0, 3)]
    for _ in range(4):
        plain, threaded = map(next, streams)
        assert plain.uids == threaded.uids and torch.equal(plain.coords, threaded.coords)
        assert not set(plain.uids) & {"1/10001", "0/10002", "0/10004"}
    assert set(streams[0].broken) == {1, 2, 4} and "'00006.png' is not a readable PNG" in streams[0].broken[1]


def test_a_truncated_file_is_named(tmp_path: Path, packed: list[PackedViews]) -> None:
    write_form("webdataset", tmp_path, packed)
    path = tmp_path / "00001.tar"
    path.write_bytes(path.read_bytes()[:-60_000])
    source = RecordSource(open_store(tmp_path), range(COUNT), SIDE)
    assert source.views(0, (0,)).rgba.any()
    with pytest.raises(BrokenRecord, match=r"00001.tar: ends before|has no part|no view"):
        source.views(COUNT - 1, VIEWS)
    (tmp_path / "00002.tar").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(BrokenRecord, match="00002.tar: is not a readable tar file"):
        open_store(tmp_path)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_cursor_is_exact_with_any_number_of_workers(shards: Path, workers: int) -> None:
    objects = Dataset(open_source(data_of(shards), GEOMETRY, False), num_views=6)
    plain = BatchStream(objects, 2, seed=5)
    ahead = BatchStream(objects, 2, seed=5, workers=workers, prefetch=3)
    for _ in range(3):
        assert torch.equal(next(plain).images_rgb, next(ahead).images_rgb)
    assert ahead.state_dict() == plain.state_dict()
    resumed = BatchStream(objects, 2, seed=5, workers=2)
    next(resumed)
    resumed.load_state_dict(ahead.state_dict())
    for _ in range(3):
        expected = next(plain)
        for stream in (ahead, resumed):
            batch = next(stream)
            assert batch.uids == expected.uids and batch.captions == expected.captions
            assert torch.equal(batch.coords, expected.coords)


def test_neighbours_in_a_file_are_read_together(tmp_path: Path, packed: list[PackedViews]) -> None:
    write_form("grouped parquet", tmp_path, packed)
    source = RecordSource(open_store(tmp_path), range(COUNT), SIDE)
    assert source.blocks() == [range(3), range(3, 6)]
    stream = BatchStream(Dataset(source, num_views=4), 2, seed=0, blocks=[range(k, k + 1) for k in range(COUNT)])
    assert sorted(uid for _ in range(3) for uid in next(stream).uids) == sorted(map(uid_of, range(COUNT)))
    assert RecordSource(open_store(tmp_path), [0, 2, 4], SIDE).blocks() == [range(2), range(2, 3)]


def test_captions_beside_a_folder(tmp_path: Path, packed: list[PackedViews]) -> None:
    for number in range(3):
        write_folder(tmp_path / f"thing{number}", records(packed, captions=False)[number])
        (tmp_path / f"thing{number}.txt").write_text(f"thing {number}\n\none more thing\n")
    source = open_source(data_of(tmp_path), GEOMETRY, True)
    assert source.caption(0, None).startswith("thing ")
    drawn = {source.caption(0, np.random.default_rng(seed)) for seed in range(20)}
    assert drawn == {source.caption(0, None), "one more thing"}
