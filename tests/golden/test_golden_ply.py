"""The .ply files of the reference, byte for byte."""

import numpy as np
import pytest
import torch
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.formats.ply import decode_ply, encode_ply
from diffsplat_client.request import GenerationRequest

from diffsplat.backbones import SD15
from diffsplat.geometry.gaussians import canonicalize, from_array, to_array
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.package import PackageStage


def torch_log(values: np.ndarray) -> np.ndarray:
    """PyTorch's logarithm, the one that wrote the reference: libraries differ in the last bit."""
    return torch.log(torch.from_numpy(np.ascontiguousarray(values))).numpy()


@pytest.fixture
def ply(golden):
    return golden("ply")


@pytest.fixture
def cloud(ply) -> SplatCloud:
    g = {name: tensor.numpy() for name, tensor in ply.case_in("gaussians").items()}
    return SplatCloud(g["xyz"], g["rgb"], g["opacity"].reshape(-1), g["scale"], g["rotation"])


def test_files_are_the_references_bytes(ply, cloud) -> None:
    for case, options in ply.config["cases"].items():
        data = encode_ply(cloud, options["opacity_threshold"], options["compatible"], log=torch_log)
        assert bytes(data) == ply.out(case)["file"].numpy().tobytes(), case


def test_the_service_writes_the_references_bytes(ply, cloud) -> None:
    """`package` for the format ply_compat; the canonical splats beside the file are the same ones."""
    raw = cloud.to_array()
    splats = to_array(canonicalize(from_array(torch.from_numpy(raw)), SD15.geometry)).numpy()
    for case, options in ply.config["cases"].items():
        if not options["compatible"]:
            continue
        threshold = options["opacity_threshold"]
        request = GenerationRequest("x", format="ply_compat", opacity_threshold_asset=threshold)
        gaussians, file = PackageStage().run(splats, Envelope(request), raw)
        assert file == ply.out(case)["file"].numpy().tobytes(), case
        assert gaussians is not None and np.array_equal(gaussians, splats[cloud.opacity > threshold])


def test_the_default_logarithm_differs_in_the_last_bit_at_most(ply, cloud) -> None:
    for case, options in ply.config["cases"].items():
        data = bytes(encode_ply(cloud, options["opacity_threshold"], options["compatible"]))
        reference = ply.out(case)["file"].numpy().tobytes()
        assert len(data) == len(reference)
        ours, theirs = (decode_ply(file, compatible=False).to_array() for file in (data, reference))
        np.testing.assert_array_max_ulp(ours, theirs, maxulp=1)


def test_reading_gives_what_the_reference_reads(ply, assert_close) -> None:
    for case, options in ply.config["cases"].items():
        expected = ply.out(case)
        cloud = decode_ply(expected["file"].numpy().tobytes(), options["compatible"])
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
