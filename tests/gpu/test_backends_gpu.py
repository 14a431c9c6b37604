"""ONNX Runtime and AOTInductor on CUDA against torch on the CPU."""

from pathlib import Path

import pytest
import torch

from diffsplat.backends import BACKENDS, unavailable
from diffsplat.bundle import Bundle
from diffsplat.graph import Backend, Precision
from diffsplat.runtime import bundle_graph, load_graph
from export.graphs import graph_specs
from export.parity import LIMITS, relative_error
from export.repository import VERSION, export_repository

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("backend", ["onnxruntime", "aotinductor"])
def test_graphs_on_cuda_equal_torch(
    backend: Backend, precision: Precision, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    if reason := unavailable(backend, "cuda", precision):
        pytest.skip(reason)
    assert precision in BACKENDS[backend].precisions["cuda"]
    folder = export_repository(tiny_bundle.root, tmp_path / "out", backend, "cuda:0", precision).folder
    for graph in graph_specs(tiny_bundle.spec):
        run = load_graph(folder / graph.stage / VERSION, graph.name, device="cuda:0")
        for rows in (1, 2, 5, 16):
            inputs = graph.sample_inputs({**graph.serving_sizes, graph.batch_axis: rows}, seed=rows)
            actual = run(*(tensor.to(run.device) for tensor in inputs))
            assert actual.device == run.device and actual.dtype == torch.float32
            expected = bundle_graph(tiny_bundle, graph.name)(*inputs)
            assert relative_error(actual, expected) <= LIMITS[run.precision], (graph.name, rows)


def test_a_call_waits_for_what_torch_has_queued(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Inputs that torch is still computing are read when they are ready, and outputs before the host has waited."""
    if reason := unavailable("onnxruntime", "cuda"):
        pytest.skip(reason)
    folder = export_repository(tiny_bundle.root, tmp_path / "out", "onnxruntime", "cuda:0").folder
    run = load_graph(folder / "denoise" / VERSION, "denoiser_context", device="cuda:0")
    embeddings = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    expected = run(embeddings.cuda()).cpu()
    for _ in range(20):
        late = torch.zeros(2, 8, 16, device="cuda")
        torch.cuda._sleep(10_000_000)
        late.copy_(embeddings.cuda())
        assert torch.equal((run(late) * 1).cpu(), expected)
