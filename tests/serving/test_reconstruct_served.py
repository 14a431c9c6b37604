"""Reconstructions behind a real server: the client gets what the stages make, and every bad input is named."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffsplat_client import Client, read_ply
from diffsplat_client.cli import main
from diffsplat_client.contract import RECONSTRUCTION
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.poses import poses_of
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.transport import Tensors, TransportError

from benchmarks.quality.truth import EVALUATION_SEED
from diffsplat.bundle import Bundle
from diffsplat.reconstruction import ReconstructionPipeline
from diffsplat.serving.server.server import TritonServer
from tests.reconstruction_views import assert_same_reconstruction, sample_request, unseen_samples
from tests.serving.processes import TIMEOUT_S

pytestmark = pytest.mark.triton
DOCS = Path(__file__).resolve().parents[2] / "docs" / "reconstruction.md"


@pytest.fixture(scope="module")
def local(pico_repository: Path) -> ReconstructionPipeline:
    """The very graphs that are served, in this process."""
    return ReconstructionPipeline.load(pico_repository, threads=1)


@pytest.fixture(scope="module")
def requests(pico_bundle: Bundle) -> list[ReconstructionRequest]:
    """Unseen objects, drawn from where their novel views were taken."""
    samples = unseen_samples(pico_bundle.spec.geometry, EVALUATION_SEED, 4)
    return [sample_request(s, frame_poses=poses_of(s.camera_to_world[4:].numpy()), frame_size=32) for s in samples]


def test_all_at_once_beside_a_generation(
    client: Client, local: ReconstructionPipeline, requests: list[ReconstructionRequest]
) -> None:
    """Both services share the stages behind; each answer belongs to its own request."""
    with ThreadPoolExecutor(len(requests) + 1) as callers:
        generating = callers.submit(client.generate, "a red cube", seed=1)
        served = list(callers.map(client.reconstruct, requests))
    alone = client.generate("a red cube", seed=1).cloud
    np.testing.assert_allclose(generating.result().cloud.to_array(), alone.to_array(), atol=1e-5)
    for mine, request in zip(served, requests, strict=True):
        assert_same_reconstruction(mine, local.run(request))
        assert set(mine.timings_ms) == {
            "reconstruct", "queued_rasterize", "rasterize", "queued_package", "package", "total",
        }  # fmt: skip


@pytest.mark.parametrize("format", ["ply", "ply_compat"])
def test_files_without_frames(
    client: Client, local: ReconstructionPipeline, requests: list[ReconstructionRequest], format: str
) -> None:
    request = dataclasses.replace(requests[0], formats=(format,), frame_poses=None, opacity_threshold_asset=0.3)
    served, right = client.reconstruct(request), local.run(request)
    assert served.frames is None
    assert len(served.assets[format]) == len(right.assets[format]) and 0 < len(served.cloud) < 4 * 32 * 32
    np.testing.assert_allclose(served.cloud.opacity.min(), 0.3, atol=0.2)


# what replaces tensors of a good request -> what the error must say
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"IMAGES": None, "CAMERA_TO_WORLD": None, "NORMALS": None, "COORDS": None}, "images is missing"),
    "no cameras": ({"CAMERA_TO_WORLD": None}, "camera_to_world is missing"),
    "no normals": ({"NORMALS": None}, "normals is missing: this bundle needs images, normals, coords"),
    "materials": ({"METALLIC_ROUGHNESS": np.zeros((4, 32, 32, 2), np.float32)}, "metallic_roughness was given"),
    "three views": ({"IMAGES": np.zeros((3, 32, 32, 3), np.float32)}, "must be \\[3, 32, 32, 3\\] to match images"),
    "other size": (
        {name: np.zeros((4, 16, 16, 3), np.float32) for name in ("IMAGES", "NORMALS", "COORDS")},
        "images has 16 x 16 pixels: must be 32 x 32",
    ),
    "two channels": ({"IMAGES": np.zeros((4, 32, 32, 2), np.float32)}, "unexpected shape for input 'IMAGES'"),
    "bytes": ({"IMAGES": np.zeros((4, 32, 32, 3), np.uint8)}, "data-type"),
    "NaN": ({"COORDS": np.full((4, 32, 32, 3), np.nan, np.float32)}, "coords\\[0, 0, 0, 0\\] = nan: must be in -10"),
    "not rigid": ({"CAMERA_TO_WORLD": np.ones((4, 4, 4), np.float32)}, "camera_to_world\\[0\\] is not a rigid pose"),
    "pixels": ({"INTRINSICS": np.full((4, 4), 512, np.float32)}, "intrinsics\\[0\\] fx, .* = 512: must be in 0.1"),
    "formats": ({"FORMATS": np.array([b"obj"], np.object_)}, "formats = 'obj': must be one of raw, ply"),
    "open pose": ({"FRAME_POSES": np.full((1, 4), np.nan, np.float32)}, "frame_poses\\[0\\] azimuth_deg = nan"),
    "two sizes": ({"FRAME_SIZE": np.array([16, 16], np.int32)}, "unexpected shape for input 'FRAME_SIZE'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_whoever_sends_it(
    wire: GrpcTransport, requests: list[ReconstructionRequest], case: str
) -> None:
    changes, says = BAD[case]
    tensors: Tensors = {**requests[0].to_tensors(), **changes}
    with pytest.raises(TransportError, match=says) as caught:
        list(wire.stream(RECONSTRUCTION, {k: v for k, v in tensors.items() if v is not None}, "", TIMEOUT_S))
    assert caught.value.code == "INVALID_ARGUMENT"


def test_the_command(
    server: TritonServer, requests: list[ReconstructionRequest], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("images", "camera_to_world", "normals", "coords")
    np.savez(tmp_path / "cone.npz", **{name: getattr(requests[0], name) for name in names})
    command = ["reconstruct", str(tmp_path / "cone.npz"), "--url", server.grpc_url, "-o", str(tmp_path / "out")]
    assert main([*command, "--frame-size", "32", "--turntable-frames", "4"]) == 0, capsys.readouterr().err
    folder = tmp_path / "out" / "cone"
    files = {"splats.ply", "views.png", "turntable.mp4", "viewer.html", "reconstruction.json"}
    assert {path.name for path in folder.iterdir()} == files
    assert len(read_ply(folder / "splats.ply")) == 4 * 32 * 32
    said = json.loads((folder / "reconstruction.json").read_text())
    assert said["versions"]["server"]["reconstruction"] == "4 views of 32 x 32 pixels: images, normals, coords"


def test_the_page_s_example_runs(server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/reconstruction.md: views of an object of the generator, saved, then reconstructed."""
    monkeypatch.chdir(tmp_path)
    blocks = [block.split("```", 1)[0] for block in DOCS.read_text().split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block.replace("localhost:8001", server.grpc_url), DOCS.name, "exec"), {})
    assert len(read_ply("object.ply")) == 4 * 32 * 32
