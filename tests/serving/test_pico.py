"""The trained bundle, served: what comes back is what was asked for."""

import numpy as np
import pytest
import torch
from diffsplat_client.client import Client

from benchmarks.quality.probe import seen_nouns
from benchmarks.quality.ruler import RulerSize, build_ruler
from benchmarks.quality.truth import from_white
from diffsplat.bundle import Bundle
from diffsplat.serving.server.server import TritonServer
from tests.serving.processes import TIMEOUT_S
from training.data.procedural.captions import COLOURS
from training.data.procedural.synthetic import DEFAULT_CONFIG, SHAPES

pytestmark = pytest.mark.triton


def test_every_shape_and_every_colour_is_recognised(
    server: TritonServer, four_views: np.ndarray, pico_bundle: Bundle
) -> None:
    """Twelve prompts, each shape three times and each colour twice: at most one colour and two shapes may be missed."""
    wanted = [(list(SHAPES)[i % 4], list(COLOURS)[i % 6]) for i in range(12)]
    views = []
    with Client(server.grpc_url, timeout_s=TIMEOUT_S) as client:
        for seed, (shape, colour) in enumerate(wanted):
            result = client.generate(f"a {colour} {shape}", seed=seed, frame_poses=four_views, frame_size=32)
            assert result.frames is not None and not result.warnings
            views.append(torch.from_numpy(result.frames.copy()).permute(0, 3, 1, 2).float() / 255)
    images = from_white(torch.stack(views))  # [12, 4, 4, 32, 32]
    size = RulerSize(train=24, test=1, scenes=0, outlines=1, epochs=8)
    ruler = build_ruler(DEFAULT_CONFIG, pico_bundle.spec, 32, size, rendered=lambda: None, epoch_done=lambda: None)
    colours = [ruler.colours.seen_colour(seen, shape) for seen, (shape, _) in zip(images, wanted, strict=True)]
    assert sum(seen == colour for seen, (_, colour) in zip(colours, wanted, strict=True)) >= 11, colours
    shapes = seen_nouns(ruler.probe, images, ruler.nouns)
    assert sum(seen == shape for seen, (shape, _) in zip(shapes, wanted, strict=True)) >= 10, shapes
