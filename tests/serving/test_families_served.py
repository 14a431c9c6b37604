"""Every family and condition behind a real server: the client gets what the pipeline makes."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffsplat_client.client import Client
from diffsplat_client.request import GenerationRequest
from PIL import Image

from diffsplat.pipeline import Pipeline
from diffsplat.serving.server import TritonServer
from export.repository import export_repository
from tests.families import write_family_bundle

pytestmark = pytest.mark.triton


def picture(seed: int) -> bytes:
    """A PNG file of noise."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 48, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


TEXT = [{"prompt": "a red cube"}, {"prompt": "two blue spheres on a large green cone", "negative_prompt": "small"}]
IMAGE = [
    {"prompt": "", "image": picture(1), "elevation_deg": 20.0},
    {"prompt": "a red cube", "image": picture(2), "elevation_deg": 5.0, "guidance_scale": 1.0},
]
CONTROL = [
    {"prompt": "a red cube", "control_image": picture(3), "control_type": "depth", "guess_mode": True},
    {"prompt": "a red cube", "control_image": picture(3), "control_type": "canny", "extract_canny": True},
    {"prompt": "a red cube"},
]
START = [{"prompt": "a red cube", "init_std": 0.1, "init_noise_strength": 0.7}]
ESTIMATED = [{"prompt": "a red cube", "image": picture(4), "estimate_elevation": True}]
CASES: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {
    "sd15": ("sd15", {"pictures": True}, TEXT + START),
    "sd15-control": ("sd15", {"controls": ("depth", "canny")}, CONTROL),
    "sd15-image": ("sd15_image", {"pictures": True}, IMAGE + ESTIMATED),
    "sdxl": ("sdxl", {}, TEXT),
    "sdxl-image": ("sdxl_image", {}, IMAGE),
    "sdxl-control": ("sdxl", {"controls": ("depth", "canny")}, CONTROL),
    "pixart-alpha": ("pixart_alpha", {}, TEXT),
    "pixart-sigma-image": ("pixart_sigma_image", {}, IMAGE),
    "sd3": ("sd3", {}, TEXT),
    "sd35-image": ("sd35_image", {}, IMAGE),
}


@pytest.mark.parametrize("case", CASES)
def test_the_client_gets_what_the_pipeline_makes(case: str, tmp_path: Path, four_views: np.ndarray) -> None:
    """All requests at once, so that they share batches; each equals its own run in one process."""
    family, parts, options = CASES[case]
    bundle = write_family_bundle(tmp_path / "bundle", family, **parts)
    repository = export_repository(bundle.root, tmp_path / "repository", "torch").folder
    pipeline = Pipeline.load(repository, threads=1)
    requests = [
        GenerationRequest(**values, seed=seed, frame_poses=four_views, frame_size=32)
        for seed, values in enumerate(options)
    ]
    with (
        TritonServer(repository) as server,
        Client(server.grpc_url, timeout_s=120) as client,
        ThreadPoolExecutor(len(requests)) as callers,
    ):
        results = [*callers.map(client.generate, requests)]
    for request, result in zip(requests, results, strict=True):
        expected = pipeline.generate(request)
        assert result.seed == request.seed and result.warnings == expected.warnings
        mine, right = result.cloud.positions, expected.gaussians[:, :3]
        assert mine.shape == right.shape and np.abs(mine - right).max() <= 1e-3 * np.abs(right).max()
        assert np.abs(result.frames.astype(int) - expected.frames).mean() < 1.0
