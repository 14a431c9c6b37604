"""The .ply files of the reference: headers, columns and bytes, logarithms to the last bit but one."""

import numpy as np
import pytest
import torch
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.ply_compat import decode_published, encode_published
from diffsplat_client.request import GenerationRequest

from diffsplat.backbones import SD15
from diffsplat.geometry.gaussians import canonicalize, from_array, to_array
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.package import PackageStage
from tests.ply_files import assert_same_file


@pytest.fixture
def ply(golden):
    return golden("ply")


@pytest.fixture
def cloud(ply) -> SplatCloud:
    g = {name: tensor.numpy() for name, tensor in ply.case_in("gaussians").items()}
    return SplatCloud(g["xyz"], g["rgb"], g["opacity"].reshape(-1), g["scale"], g["rotation"])


def test_files_are_the_references_bytes(ply, cloud) -> None:
    for case, options in ply.config["cases"].items():
        data = encode_published(cloud.threshold(options["opacity_threshold"]), options["compatible"])
        assert_same_file(data, ply.out(case)["file"].numpy().tobytes(), options["compatible"])


def test_the_service_writes_the_references_bytes(ply, cloud) -> None:
    """`package` for the format ply_compat; the canonical splats beside the file are the same ones."""
    raw = cloud.to_array()
    splats = to_array(canonicalize(from_array(torch.from_numpy(raw)), SD15.geometry)).numpy()
    for case, options in ply.config["cases"].items():
        if not options["compatible"]:
            continue
        threshold = options["opacity_threshold"]
        request = GenerationRequest("x", formats=("ply_compat",), opacity_threshold_asset=threshold)
        gaussians, files = PackageStage().run(splats, Envelope(request), raw)
        assert_same_file(files["ply_compat"], ply.out(case)["file"].numpy().tobytes(), compatible=True)
        assert gaussians is not None and np.array_equal(gaussians, splats[cloud.opacity > threshold])


def test_reading_gives_what_the_reference_reads(ply, assert_close) -> None:
    for case, options in ply.config["cases"].items():
        expected = ply.out(case)
        cloud = decode_published(expected["file"].numpy().tobytes(), options["compatible"])
        actual = {
            "xyz": cloud.positions,
            "rgb": cloud.rgb,
            "opacity": cloud.opacity[:, None],
            "scale": cloud.scales,
            "rotation": cloud.quats_wxyz,
        }
        loaded = {name.removeprefix("loaded_"): tensor for name, tensor in expected.items() if name != "file"}
        assert loaded.keys() == actual.keys()
        for name, reference in loaded.items():
            assert_close(torch.from_numpy(np.ascontiguousarray(actual[name])), reference, f"{case} {name}")


def test_the_separate_file_is_the_same(ply) -> None:
    path = ply.path.with_name("ply_compatible.ply")
    if not path.exists():
        pytest.skip(f"{path.name} does not lie beside {ply.path.name}")
    compatible = [case for case, options in ply.config["cases"].items() if options["compatible"]]
    assert path.read_bytes() in [ply.out(case)["file"].numpy().tobytes() for case in compatible]
