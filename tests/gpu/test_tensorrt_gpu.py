"""TensorRT engines on the card, against torch in float32 on the CPU."""

import dataclasses
from pathlib import Path

import pytest
import torch

from diffsplat.backends import unavailable
from diffsplat.backends.devices import cuda_capability
from diffsplat.backends.engine_file import EngineInfo
from diffsplat.backends.tensorrt import TensorRTGraph
from diffsplat.bundle import Bundle
from diffsplat.graph import Precision
from diffsplat.integrity import BundleError
from diffsplat.networks import served_precision
from export.engines.cache import EngineCache
from export.engines.profiles import Limits
from export.engines.tensorrt import build_engine, find_target
from export.graphs import graph_specs
from export.parity import Reference
from export.to_onnx import write_onnx

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="module", autouse=True)
def tensorrt() -> None:
    if reason := unavailable("tensorrt", "cuda"):
        pytest.skip(reason)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_engines_equal_torch(precision: Precision, tiny_bundle: Bundle, tmp_path: Path) -> None:
    target = find_target([], precision, "all")  # for the card
    for graph in graph_specs(tiny_bundle.spec):
        files = write_onnx(graph, graph.build(tiny_bundle, precision), tmp_path / f"{graph.name}.onnx")
        has = served_precision(graph.network(tiny_bundle.spec), precision)
        engine = build_engine(graph, files, has, target, Limits(), EngineCache(tmp_path / "cache"))
        run = TensorRTGraph(graph.name, engine.path, DEVICE)  # compares names and profiles with the description
        Reference(graph, graph.build(tiny_bundle)).compare(run)  # sizes in several profiles; raises above the limit
        inputs = [tensor.to(DEVICE) for tensor in graph.sample_inputs(graph.serving_sizes)]
        first = run(*inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            again = run(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        one, other = (value if isinstance(value, torch.Tensor) else value[0] for value in (first, again))
        assert torch.equal(one, other)
        largest = engine.info.profiles[-1][graph.inputs[0].name].largest[0]
        too_many = graph.sample_inputs({**graph.serving_sizes, graph.batch_axis: largest + 1})
        with pytest.raises(ValueError, match="outside the engine's profiles"):
            run(*(tensor.to(DEVICE) for tensor in too_many))


def test_an_engine_for_another_card_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    graph = next(graph for graph in graph_specs(tiny_bundle.spec) if graph.name == "denoiser_context")
    files = write_onnx(graph, graph.build(tiny_bundle), tmp_path / "graph.onnx")
    engine = build_engine(
        graph, files, "fp32", find_target([], "fp32", graph.name), Limits(), EngineCache(tmp_path / "cache")
    )
    dataclasses.replace(EngineInfo.read(engine.path), capabilities=("5.2",)).write(engine.path)
    has = ".".join(map(str, cuda_capability(0)))
    with pytest.raises(BundleError, match=f"built for compute capability 5.2, this card has {has}: export again"):
        TensorRTGraph(graph.name, engine.path, DEVICE)
