"""The record codec: exact for what is stored, within half a step for what is quantised, clear about what is broken."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from training.data.record import (
    DEPTH_STEP,
    NORMAL_STEP,
    RawViews,
    decode_record,
    encode_record,
    pack_views,
    record_uid,
    unpack_views,
    usable_views,
)


def random_views(count: int = 3, side: int = 8) -> RawViews:
    rng = np.random.default_rng(5)
    normals = rng.normal(size=(count, side, side, 3))
    cameras = np.tile(np.eye(4), (count, 1, 1))
    cameras[:, :3] = rng.normal(size=(count, 3, 4))
    return RawViews(
        rgba=rng.random((count, side, side, 4)).astype(np.float32),
        normals=(normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32),
        depths=(rng.random((count, side, side)) * 5.0).astype(np.float32),
        camera_to_world_zup=cameras,
    )


def test_round_trip_is_exact_after_packing_and_within_half_a_step_before():
    views = random_views()
    packed = pack_views(views)
    record = encode_record("some/object", packed, (0, 7, 39))
    decoded = decode_record(record, (0, 7, 39))
    for stored, read in zip(packed[:3], decoded[:3], strict=True):
        assert stored.dtype == read.dtype
        np.testing.assert_array_equal(stored, read)

    numbers = unpack_views(decoded)
    float_slack = 1e-6
    assert np.abs(numbers.rgba - views.rgba).max() <= 0.5 / 255 + float_slack
    assert np.abs(numbers.normals - views.normals).max() <= 0.5 * NORMAL_STEP + float_slack
    assert np.abs(numbers.depths - views.depths).max() <= 0.5 * DEPTH_STEP + float_slack
    assert record_uid(record) == "some/object"
    assert usable_views(record, 40) == (0, 7, 39)


def test_views_come_back_in_the_order_asked_for():
    packed = pack_views(random_views())
    record = encode_record("x", packed, (4, 5, 6))
    np.testing.assert_array_equal(decode_record(record, (6, 4)).rgba, packed.select((2, 0)).rgba)


def test_other_readers_see_the_published_layout():
    views = random_views(1, 4)
    views.rgba[0, 0, 0] = (1.0, 0.0, 0.0, 1.0)
    views.normals[0, 0, 0] = (1.0, 0.0, 0.0)
    record = encode_record("x", pack_views(views), (3,))
    assert Image.open(io.BytesIO(record["00003.png"])).getpixel((0, 0)) == (255, 0, 0, 255)
    # +x of the y-up world is stored as 0 in the first channel: the published data negates x.
    assert pack_views(views).normal_depth[0, 0, 0, 0] == 0
    camera = json.loads(record["00003.json"])
    np.testing.assert_array_equal(camera["origin"], views.camera_to_world_zup[0, :3, 3])
    np.testing.assert_array_equal(camera["y"], views.camera_to_world_zup[0, :3, 1])


@pytest.mark.parametrize(
    ("key", "content", "message"),
    [
        ("00000.png", b"", "not a readable PNG"),
        ("00000.png", b"not a png", "not a readable PNG"),
        ("00000.json", b"{", "not a camera"),
        ("00000.json", b'{"x": [1, 0, 0]}', "not a camera"),
        ("00000.json", b'{"x": [1, 0], "y": [0, 1], "z": [0, 0], "origin": [0, 0]}', "three finite numbers"),
        ("00000.json", b'{"x": [NaN,0,0], "y": [0,1,0], "z": [0,0,1], "origin": [0,0,0]}', "three finite numbers"),
    ],
)
def test_a_broken_part_is_named(key: str, content: bytes, message: str):
    record = encode_record("x", pack_views(random_views(1)), (0,))
    record[key] = content
    with pytest.raises(ValueError, match=f"{key}.*{message}"):
        decode_record(record, (0,))


def test_a_missing_part_and_a_wrong_bit_depth_are_named():
    record = encode_record("x", pack_views(random_views(1)), (0,))
    with pytest.raises(ValueError, match="00001.png"):
        decode_record(record, (1,))
    record["00000_nd.png"] = record["00000.png"]
    with pytest.raises(ValueError, match="00000_nd.png.*uint8"):
        decode_record(record, (0,))


def test_depth_beyond_the_range_is_refused():
    for depth in (5.1, -0.1):
        views = random_views(1)
        views.depths[0, 0, 0] = depth
        with pytest.raises(ValueError, match=f"depths from .*{depth}.* must lie in"):
            pack_views(views)
