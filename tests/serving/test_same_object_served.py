"""A small bundle of published geometry whose GSRecon sees RGB alone, behind a server.

One object, however it is shown; the published script's files; reconstructions.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffsplat_client.client import Client
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.formats import FORMAT_CHOICES, FORMATS
from diffsplat_client.generation import Generation
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.request import GenerationRequest
from diffsplat_client.status import find_early_end
from diffsplat_client.transport import Tensors
from safetensors import safe_open

from benchmarks.quality.truth import EVALUATION_SEED
from diffsplat.bundle import Bundle
from diffsplat.geometry.gaussians import canonicalize, from_array, to_array
from diffsplat.pipeline import Pipeline
from diffsplat.reconstruction import ReconstructionPipeline
from diffsplat.serving.server.server import TritonServer
from diffsplat.stages.envelope import Envelope
from export.repository import export_repository
from tests.drawing import BOUNDS, FRAME, POSES, difference, draw
from tests.families import write_family_bundle
from tests.ply_files import assert_same_file
from tests.reconstruction_views import RGB_ONLY, assert_same_reconstruction, sample_request, unseen_samples
from tests.serving.processes import TIMEOUT_S
from tests.serving.repositories import use_one_process_per_stage

pytestmark = pytest.mark.triton

REFERENCE_PLY = Path(__file__).parents[1] / "golden" / "data" / "ply.safetensors"
REQUEST = GenerationRequest("a red cube", seed=3, frame_poses=POSES, frame_size=FRAME)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_family_bundle(tmp_path_factory.mktemp("bundles") / "same-object", "sd15", gsrecon=RGB_ONLY)


@pytest.fixture(scope="module")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_repository(bundle.root, tmp_path_factory.mktemp("same-object") / "repository", "torch").folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(use_one_process_per_stage(repository)) as server:
        yield server


@pytest.fixture(scope="module")
def pipeline(repository: Path) -> Pipeline:
    return Pipeline.load(repository, threads=1)


@pytest.fixture(scope="module")
def results(server: TritonServer) -> dict[str, Generation]:
    with Client(server.grpc_url, timeout_s=TIMEOUT_S) as client:
        return {format: client.generate(REQUEST, formats=(format,)) for format in FORMAT_CHOICES}


def package(wire: GrpcTransport, request: GenerationRequest, **tensors: np.ndarray) -> Tensors:
    text = np.array([Envelope(request).to_json().encode()], np.object_)
    (answer,) = wire.stream("package", {**tensors, "DECODED_REQUEST": text}, "asked", TIMEOUT_S)
    return answer


@pytest.mark.parametrize("format", FORMAT_CHOICES)
def test_the_asset_is_the_object_of_the_frames(results: dict[str, Generation], pipeline: Pipeline, format: str) -> None:
    result, geometry = results[format], pipeline.decode.spec.geometry
    assert result.frames is not None and result.frames.std() > 5
    assert difference(result.frames, results["raw"].frames).max() <= 1
    largest, mean = BOUNDS[format]
    in_client = result.cloud.to_array()
    error = difference(draw(from_array(torch.from_numpy(in_client)), geometry), result.frames)
    assert error.max() <= largest and error.mean() <= mean
    in_file = in_client
    for name, file in result.assets.items():
        in_file = FORMATS[name].read(file).to_array()
    error = difference(draw(from_array(torch.from_numpy(in_file)), geometry), result.frames)
    assert error.max() <= largest and error.mean() <= mean


def test_files_hold_the_bytes_of_the_pipeline(results: dict[str, Generation], pipeline: Pipeline) -> None:
    for format in ("ply", "ply_compat"):
        expected = pipeline.generate(dataclasses.replace(REQUEST, frame_poses=None, formats=(format,)))
        assert results[format].assets == expected.assets, format


def test_ply_compat_is_what_the_network_said(results: dict[str, Generation], pipeline: Pipeline) -> None:
    """Its quaternions are not of unit length; canonicalised it is what the other formats hold."""
    in_file = FORMATS["ply_compat"].read(results["ply_compat"].assets["ply_compat"])
    lengths = np.linalg.norm(in_file.quats_wxyz, axis=1)
    assert np.abs(lengths - 1).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(results["ply"].cloud.quats_wxyz, axis=1), 1, atol=1e-5)
    gaussians = canonicalize(from_array(torch.from_numpy(in_file.to_array())), pipeline.decode.spec.geometry)
    # not the quaternions: of nearly equal axes any one will do
    np.testing.assert_allclose(
        to_array(gaussians)[:, :10], results["ply_compat"].cloud.to_array()[:, :10], rtol=1e-3, atol=1e-6
    )


def test_the_published_file_of_the_same_splats(wire: GrpcTransport, pipeline: Pipeline) -> None:
    """Through the served `package`: splats and files come from the published writer."""
    with safe_open(REFERENCE_PLY, "pt") as file:
        cases = json.loads(file.metadata()["config"])["cases"]
        given = {name: file.get_tensor(f"in/gaussians/{name}") for name in ("xyz", "rgb", "opacity", "scale")}
        raw = torch.cat([*given.values(), file.get_tensor("in/gaussians/rotation")], dim=1)
        files = {case: file.get_tensor(f"out/{case}/file").numpy().tobytes() for case in cases}
    splats = to_array(canonicalize(from_array(raw), pipeline.decode.spec.geometry))
    request = REQUEST.with_defaults(**pipeline.decode.spec.request_defaults)
    compatible = {case: options for case, options in cases.items() if options["compatible"]}
    assert len(compatible) >= 2
    for case, options in compatible.items():
        threshold = options["opacity_threshold"]
        asked = dataclasses.replace(request, formats=("ply_compat",), opacity_threshold_asset=threshold)
        answer = package(wire, asked, SPLATS=splats.numpy(), RAW_SPLATS=raw.numpy())
        assert_same_file(bytes(answer["ASSETS"].reshape(-1)[0]), files[case], compatible=True)
        assert np.array_equal(answer["GAUSSIANS"], splats[raw[:, 6] > threshold].numpy())


def test_package_needs_the_raw_splats(wire: GrpcTransport, pipeline: Pipeline) -> None:
    request = REQUEST.with_defaults(**pipeline.decode.spec.request_defaults)
    asked = dataclasses.replace(request, formats=("ply_compat",))
    end = find_early_end(package(wire, asked, SPLATS=np.full((2, 14), 0.5, np.float32)))
    assert end is not None and end.error_type == "INVALID_ARG" and "RAW_SPLATS is missing" in end.message


def test_a_gsrecon_of_rgb_alone(server: TritonServer, bundle: Bundle) -> None:
    """It serves as it is, and refuses what it has not learnt to see."""
    (sample,) = unseen_samples(bundle.spec.geometry, EVALUATION_SEED, 1)
    full = sample_request(sample, frame_poses=POSES, frame_size=32)
    request = dataclasses.replace(full, normals=None, coords=None)
    with Client(server.grpc_url, timeout_s=TIMEOUT_S) as client:
        served = client.reconstruct(request)
        assert client.server_parameters["reconstruction"] == "4 views of 32 x 32 pixels: images"
        with pytest.raises(InvalidRequestError, match="normals was given: must be left out, this bundle takes images$"):
            client.reconstruct(full)
    assert_same_reconstruction(served, ReconstructionPipeline.from_bundle(bundle).run(request))
