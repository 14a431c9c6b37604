"""The trained bundle, served: what comes back is what was asked for."""

import numpy as np
import pytest
import torch
from diffsplat_client.client import Client

from benchmarks.quality import nearest_colour
from benchmarks.shape_probe import PROBE_DATA_SEED, probed_shapes, train_probe, true_objects
from diffsplat.bundle import Bundle
from diffsplat.serving.server import TritonServer
from training.data.captions import COLOURS
from training.data.synthetic import SHAPES

pytestmark = pytest.mark.triton


def test_every_shape_and_every_colour_is_recognised(server: TritonServer, four_views: np.ndarray) -> None:
    """Twelve prompts, each shape three times and each colour twice: at most one colour and two shapes may be missed."""
    wanted = [(list(SHAPES)[i % 4], list(COLOURS)[i % 6]) for i in range(12)]
    views = []
    with Client(server.grpc_url, timeout_s=60) as client:
        for seed, (shape, colour) in enumerate(wanted):
            result = client.generate(f"a {colour} {shape}", seed=seed, frame_poses=four_views, frame_size=32)
            assert result.frames is not None and not result.warnings
            views.append(torch.from_numpy(result.frames.copy()).permute(0, 3, 1, 2).float() / 255)
    images = torch.stack(views)  # [12, 4, 3, 32, 32]
    colours = [nearest_colour(object_views) for object_views in images]
    assert sum(seen == colour for seen, (_, colour) in zip(colours, wanted, strict=True)) >= 11, colours
    probe = train_probe(true_objects(0, 576, 32, 4))
    shapes = probed_shapes(probe, images)
    assert sum(seen == shape for seen, (shape, _) in zip(shapes, wanted, strict=True)) >= 10, shapes


def test_it_says_where_it_comes_from(pico_bundle: Bundle) -> None:
    stages = pico_bundle.lineage["stages"]
    assert list(stages) == ["recon", "vae", "diffusion", "decoder"]
    for stage in stages.values():
        assert {"preset", "seed", "data", "steps", "revision", "metrics"} <= set(stage)
    # the probe never sees an object that the network was trained on
    assert PROBE_DATA_SEED not in {stage["data"]["seed"] for stage in stages.values()}
    assert sum(file["bytes"] for file in pico_bundle.files.values()) < 8_000_000
