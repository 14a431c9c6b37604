"""The real card: its facts, its lock, and a repository served on it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffsplat_client.client import Client
from diffsplat_client.request import GenerationRequest

from diffsplat.backends.devices import DeviceError, find_device, inspect, inspect_apart
from diffsplat.bundle import Bundle
from diffsplat.pipeline import Pipeline
from diffsplat.runtime import bundle_graphs
from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.server.server import TritonServer
from export.repository import export_repository

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_card_says_the_same_to_both_who_ask() -> None:
    here, apart = inspect("cuda"), inspect_apart("cuda:0")
    assert (here.device, here.card, here.uuid, here.capability) == (
        *(apart.device, apart.card, apart.uuid, apart.capability),
    )
    assert here.device == "cuda:0" and here.card and here.uuid
    assert 0 < apart.free_bytes <= torch.cuda.get_device_properties(0).total_memory


def test_a_card_beyond_the_last_is_refused() -> None:
    with pytest.raises(DeviceError, match=f"there are {torch.cuda.device_count()}"):
        find_device(f"cuda:{torch.cuda.device_count()}")


def test_weights_are_loaded_onto_the_card_in_their_type(tiny_bundle: Bundle) -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    (graph,) = bundle_graphs(tiny_bundle, ["denoiser"], "bf16", "cuda:0").values()
    assert graph.device == torch.device("cuda", 0)
    taken, peak = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    assert peak <= 1.1 * taken + 2**20  # no float32 copy was there at any time


@pytest.mark.triton
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="Triton finds no card without NVIDIA's driver")
def test_a_repository_is_served_on_the_card_and_the_card_has_one_server(tiny_bundle: Bundle, tmp_path: Path) -> None:
    repository = export_repository(tiny_bundle.root, tmp_path / "repository", "torch", "cuda:0").folder
    request = GenerationRequest("a red cube", seed=7, opacity_threshold_asset=0.0)
    expected = Pipeline.from_bundle(tiny_bundle).generate(request).gaussians
    assert expected is not None
    with TritonServer(repository) as server:
        with pytest.raises(ServerStartError, match=f"is in use by diffsplat serve {repository}"):
            TritonServer(repository, device="cuda:0").start()
        with Client(server.grpc_url) as client:
            assert client.status().parameters["device"].startswith("cuda:0 (")
            served = client.generate(request).cloud.to_array()
    assert np.abs(served - expected).max() <= 1e-3 * np.abs(expected).max()
