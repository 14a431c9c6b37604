"""Samples made with `compat` equal those of the published loader, from the bytes of a record on."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from diffsplat.images.prepare import canny_map, resize_antialiased
from tests.golden.files import Golden, Outputs
from training.data.camera_chain import relative_orbit_cameras
from training.data.control_maps import depth_map
from training.data.record import PackedViews, decode_record, encode_record, unpack_views
from training.data.sample import build_sample, over_white

TOLERANCE = 2.5e-7  # absolute; a few steps of float32 around 1


def packed_views(file: Golden, case: str) -> PackedViews:
    """The case's views as a record stores them."""
    given = file.case_in(case)
    cameras = np.tile(np.eye(4), (len(given["cam"]), 1, 1))
    cameras[:, :3] = given["cam"].numpy().transpose(0, 2, 1)
    return PackedViews(given["rgba"].numpy(), given["nd_u16"].numpy().astype(np.uint16), cameras)


@pytest.fixture(scope="module")
def file(golden: Callable[[str], Golden]) -> Golden:
    return golden("dataset_preprocess")


def assert_equal(made: Tensor, reference: Tensor, name: str) -> None:
    assert made.shape == reference.shape, name
    error = (made.double() - reference.double()).abs().max().item()
    assert error <= TOLERANCE * max(1.0, reference.abs().max().item()), f"{name}: {error:.3g}"


def cases(file: Golden) -> list[tuple[str, str, Outputs]]:
    """Names of inputs and outputs, and the outputs; a file with one input uses it for all."""
    inputs = sorted({name.split("/")[1] for name in file.tensors if name.startswith("in/")})
    return [(case if case in inputs else inputs[0], case, file.out(case)) for case in file.cases]


def test_samples_equal_the_published_ones(file: Golden) -> None:
    side = file.config["opt"]["input_res"]
    fields = {
        "image": "images_rgb", "mask": "alphas", "normal": "normals", "coord": "coords", "C2W": "camera_to_world",
        "fxfycxcy": "intrinsics",
    }  # fmt: skip
    for given, case, expected in cases(file):
        packed = packed_views(file, given)
        record = encode_record("golden", packed, range(len(packed.rgba)))
        read = decode_record(record, range(len(packed.rgba)))
        sample = build_sample(unpack_views(read), "", "golden", "legacy", side)
        for name, field in fields.items():
            if name in expected:
                assert_equal(getattr(sample, field), expected[name], f"{case}/{name}")


def test_without_compat_edges_fade_once(file: Golden) -> None:
    """The reason for the switch: at the edges the published normals are whiter."""
    side = file.config["opt"]["input_res"]
    given, _, expected = cases(file)[0]
    whole = build_sample(unpack_views(packed_views(file, given)), "", "golden", "legacy")
    once = resize_antialiased(whole.normals, side)
    assert (once - expected["normal"]).abs().max() > 0.01


def test_cameras_equal_the_published_ones(file: Golden) -> None:
    for given, _, expected in cases(file):
        if "cam_pose" in expected:
            orbit = relative_orbit_cameras(packed_views(file, given).camera_to_world_zup)
            pose = torch.stack(
                [-torch.deg2rad(orbit.elevations_deg), torch.deg2rad(orbit.azimuths_deg), orbit.distances], dim=1
            )  # elevation is negative above the horizon there
            torch.testing.assert_close(pose, expected["cam_pose"].float(), rtol=0, atol=2e-6)


def test_control_maps_equal_the_published_ones(file: Golden) -> None:
    side = file.config["opt"]["input_res"]
    for given, case, expected in cases(file):
        whole = build_sample(unpack_views(packed_views(file, given)), "", "golden", "legacy")
        alphas = resize_antialiased(whole.alphas, side)
        if "depth" in expected:
            depths = torch.stack([depth_map(d, a) for d, a in zip(whole.depths, whole.alphas, strict=True)])
            assert_equal(over_white(resize_antialiased(depths, side), alphas), expected["depth"], f"{case}/depth")
        if "canny" in expected:
            edges = torch.stack([canny_map(image) for image in whole.images_rgb])
            assert_equal(resize_antialiased(edges, side), expected["canny"], f"{case}/canny")
