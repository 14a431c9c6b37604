"""The stages on CUDA against the CPU: same seed, same object; and torch raises where the host waits inside a step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffsplat_client.request import GenerationRequest
from torch import Tensor

from diffsplat.backends.cuda_graphs import ReplayedGraph, replayed
from diffsplat.backends.eager import TorchGraph
from diffsplat.bundle import Bundle
from diffsplat.denoisers.buckets import Buckets
from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.geometry.eigen import eigenvectors_of_symmetric
from diffsplat.runtime import bundle_graphs
from diffsplat.stages.decode import DecodeStage
from diffsplat.stages.denoise import DenoiseStage, denoise_graphs, step_graphs
from diffsplat.stages.denoise_job import DenoiseJob
from diffsplat.stages.encode import EncodeStage
from diffsplat.stages.work import DenoiseWork
from tests.families import write_family_bundle
from tests.image_files import image

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)
FAMILIES = ["sd15", "sdxl", "pixart_sigma", "sd35", "sd15_image", "sd35_image"]
MAX_BATCH = 3


def stage_on_cuda(bundle: Bundle, record: bool = True) -> DenoiseStage:
    """Warm, with buckets; a wait of the host inside a later step raises."""
    graphs = bundle_graphs(bundle, denoise_graphs(bundle.spec), device=CUDA)
    graphs = replayed(graphs, step_graphs(bundle.spec)) if record else graphs
    stage = DenoiseStage(bundle.spec, graphs, Buckets(2 * MAX_BATCH, bundle.spec.text.tokens))
    stage.warm_up(MAX_BATCH)
    stage.sync_debug = "error"
    return stage


def works_of(bundle: Bundle) -> list[DenoiseWork]:
    encode, pictures = EncodeStage.from_bundle(bundle), bundle.spec.is_image_conditioned
    requests = [
        GenerationRequest("a red cube", seed=1, steps=4, image=image(1) if pictures else None, elevation_deg=10.0),
        GenerationRequest(
            "two blue spheres on a large green cone", seed=2, steps=6, image=image(2) if pictures else None,
            elevation_deg=0.0, triangle_guidance=True,
        ),
        GenerationRequest(
            "a large cone", seed=3, steps=5, guidance_scale=1.0, image=image(3) if pictures else None,
            elevation_deg=20.0,
        ),
    ]  # fmt: skip
    return [encode.run(request) for request in requests]


def finish(stage: DenoiseStage, works: list[DenoiseWork]) -> list[Tensor]:
    """All together; the second joins a step late."""
    jobs: list[DenoiseJob] = [stage.start(work) for work in works]
    stage.step([jobs[0], *jobs[2:]])
    while active := [job for job in jobs if job.step < job.steps]:
        stage.step(active)
    return [job.result().cpu() for job in jobs]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_the_same_latents_on_every_device(family: str, tmp_path: Path) -> None:
    bundle = write_family_bundle(tmp_path / family, family)
    works = works_of(bundle)
    expected = finish(DenoiseStage.from_bundle(bundle), works)
    for record in (False, True):
        for mine, other in zip(finish(stage_on_cuda(bundle, record), works), expected, strict=True):
            assert (mine - other).abs().max() <= 2e-3 * other.abs().max(), f"recorded: {record}"


def test_control_maps_steer_the_same_way(tmp_path: Path) -> None:
    bundle = write_family_bundle(tmp_path / "sd15", "sd15", ("depth", "canny"))
    encode = EncodeStage.from_bundle(bundle)
    maps = {"control_image": image(1), "elevation_deg": 10.0}
    requests = [
        GenerationRequest("a red cube", seed=1, steps=4, control_type="depth", guess_mode=True, **maps),
        GenerationRequest("a red cube", seed=2, steps=4, control_type="canny", extract_canny=True, **maps),
        GenerationRequest("a red cube", seed=3, steps=4),
    ]
    works = [encode.run(request) for request in requests]
    expected = finish(DenoiseStage.from_bundle(bundle), works)
    for mine, other in zip(finish(stage_on_cuda(bundle), works), expected, strict=True):
        assert (mine - other).abs().max() <= 2e-3 * other.abs().max()


def test_a_step_that_waits_is_noticed(tiny_bundle: Bundle) -> None:
    stage = stage_on_cuda(tiny_bundle)
    (work, *_) = works_of(tiny_bundle)
    job, graph = stage.start(work), stage.graphs[STEP]

    class Waits(TorchGraph):
        def __call__(self, *inputs: Tensor) -> Tensor:
            output: Tensor = graph(*inputs)
            output.sum().item()
            return output

    assert isinstance(graph, ReplayedGraph) and isinstance(graph.graph, TorchGraph)
    stage.graphs = {**stage.graphs, STEP: Waits(STEP, graph.graph.module)}
    with pytest.raises(RuntimeError, match="synchroniz"):
        stage.step([job])
    assert job.step == 0  # nothing was changed: the step can be repeated
    stage.graphs = {**stage.graphs, STEP: graph}
    stage.step([job])
    assert job.step == 1


def test_the_host_stays_one_step_ahead(tiny_bundle: Bundle) -> None:
    stage = stage_on_cuda(tiny_bundle)
    job = stage.start(works_of(tiny_bundle)[0])
    for step in range(job.steps):
        stage.step([job])
        assert len(stage._pace._queued) == min(step + 1, 2)


def test_decode_gives_the_same_splats(tmp_path: Path) -> None:
    """Positions, colours and opacities; axes of equal length may come in another order."""
    bundle = write_family_bundle(tmp_path / "sd15", "sd15")
    envelope, spec = works_of(bundle)[0].envelope, bundle.spec
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(spec.geometry.views, spec.latent_channels, *[spec.latent_size] * 2, generator=generator)
    expected = DecodeStage.from_bundle(bundle).run(latents, envelope).splats
    decoder = bundle_graphs(bundle, ["decoder"], device=CUDA)["decoder"]
    splats = DecodeStage(spec, decoder).run(latents, envelope).splats
    assert splats.device == CUDA and splats.dtype == torch.float32
    np.testing.assert_allclose(splats.cpu()[:, :7], expected[:, :7], atol=2e-3)


def test_an_objects_covariances_are_decomposed_at_once() -> None:
    factors = torch.randn(262_144, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cuda()
    matrices = factors @ factors.mT
    torch.cuda.set_sync_debug_mode("error")
    try:
        values, axes = eigenvectors_of_symmetric(matrices)
        again = (axes * values[..., None, :]) @ axes.mT
        error = (again - matrices).abs().amax()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert error.item() <= 1e-12 * matrices.abs().max().item()
