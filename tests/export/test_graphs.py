"""Exported graphs equal torch, at every free size, by either back end."""

import dataclasses
import json
import math
from pathlib import Path

import onnx
import pytest
import torch
from diffsplat_client.contract import CONTRACT_VERSION

from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.onnx_runtime import OnnxGraph
from diffsplat.bundle import Bundle
from diffsplat.denoisers.unet import DenoiserStep
from diffsplat.export_record import ExportRecord
from diffsplat.integrity import BundleError, write_sealed
from diffsplat.networks import build_graph_module, bundle_network, network_builders
from diffsplat.runtime import bundle_graph, load_graph
from export import timing
from export.common import ExportError
from export.graph_spec import GraphSpec
from export.graphs import graph_specs
from export.parity import LIMITS, Reference, relative_error
from export.repository import VERSION, export_repository
from export.timing import median_ms
from export.to_onnx import write_onnx

PARITY_LIMIT = LIMITS["fp32"]

NAMES = ("text_encoder", "denoiser_context", "denoiser", "decoder", "gsrecon")


def onnx_error(graph: GraphSpec, module: torch.nn.Module, path: Path) -> float:
    return Reference(graph, module).compare(OnnxGraph(graph.name, path, threads=1))


@pytest.fixture(scope="session")
def onnx_repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_repository(tiny_bundle.root, tmp_path_factory.mktemp("onnx") / "repository", "onnxruntime").folder


@pytest.fixture(scope="session")
def torch_repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_repository(tiny_bundle.root, tmp_path_factory.mktemp("torch") / "repository", "torch").folder


@pytest.fixture(params=NAMES)
def graph(request: pytest.FixtureRequest, tiny_bundle: Bundle) -> GraphSpec:
    return next(graph for graph in graph_specs(tiny_bundle.spec) if graph.name == request.param)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("tokens", [8, 3])
def test_both_back_ends_are_equal_at_any_size(
    graph: GraphSpec, onnx_repository: Path, torch_repository: Path, rows: int, tokens: int
) -> None:
    inputs = graph.sample_inputs({"tokens": tokens, graph.batch_axis: rows}, seed=rows)
    by_onnx = load_graph(onnx_repository / graph.stage / VERSION, graph.name, threads=1)
    by_torch = load_graph(torch_repository / graph.stage / VERSION, graph.name, threads=1)
    assert (by_onnx.backend, by_torch.backend) == ("onnxruntime", "torch")
    expected = by_torch(*inputs)
    assert (by_onnx(*inputs) - expected).abs().max() <= PARITY_LIMIT * expected.abs().max()


def test_a_served_torch_graph_is_the_bundle_s(graph: GraphSpec, tiny_bundle: Bundle, torch_repository: Path) -> None:
    inputs = graph.sample_inputs(graph.serving_sizes)
    served = load_graph(torch_repository / graph.stage / VERSION, graph.name, threads=1)
    assert torch.equal(served(*inputs), bundle_graph(tiny_bundle, graph.name)(*inputs))


def test_rows_do_not_depend_on_their_neighbours(onnx_repository: Path, tiny_bundle: Bundle) -> None:
    graph = next(graph for graph in graph_specs(tiny_bundle.spec) if graph.name == "denoiser")
    run = load_graph(onnx_repository / "denoise" / VERSION, "denoiser", threads=1)
    inputs = graph.sample_inputs({**graph.serving_sizes, "rows": 3})
    together = run(*inputs)
    for row in range(3):
        alone = run(*(tensor[row : row + 1] for tensor in inputs))
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-4)


def test_graphs_answer_for_every_axis(graph: GraphSpec, onnx_repository: Path) -> None:
    """Names, types and axes in the file are those of the table, so that the table may be trusted."""
    model = onnx.load(onnx_repository / graph.stage / VERSION / f"{graph.name}.onnx").graph
    found = {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*model.input, *model.output)
    }
    assert found == {tensor.name: tensor.axes for tensor in (*graph.inputs, *graph.outputs)}


def test_wrong_inputs_are_refused_in_words(onnx_repository: Path) -> None:
    run = load_graph(onnx_repository / "denoise" / VERSION, "denoiser_context", threads=1)
    with pytest.raises(ValueError, match="takes 1 inputs, not 2"):
        run(torch.zeros(1, 8, 16), torch.zeros(1))
    with pytest.raises(ValueError, match=r"input 'embeddings': float32 \[1, 8, 17\] given"):
        run(torch.zeros(1, 8, 17))
    with pytest.raises(ValueError, match="float64 .* given"):
        run(torch.zeros(1, 8, 16, dtype=torch.float64))


def test_one_free_axis_has_one_size(onnx_repository: Path, tiny_bundle: Bundle) -> None:
    graph = next(graph for graph in graph_specs(tiny_bundle.spec) if graph.name == "denoiser")
    latents, plucker, timesteps, context = graph.sample_inputs(graph.serving_sizes)
    with pytest.raises(ValueError, match="input 'timesteps'"):
        load_graph(onnx_repository / "denoise" / VERSION, "denoiser")(latents, plucker, timesteps[:1], context)


def test_strided_inputs_are_read_as_what_they_show(onnx_repository: Path) -> None:
    run = load_graph(onnx_repository / "denoise" / VERSION, "denoiser_context", threads=1)
    strided = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    assert torch.equal(run(strided), run(strided.contiguous()))


@pytest.mark.parametrize("damage", ["missing", "truncated", "tampered"])
def test_a_damaged_graph_is_refused_by_name(onnx_repository: Path, tmp_path: Path, damage: str) -> None:
    source = onnx_repository / "decode" / VERSION
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    graph_file = tmp_path / "decoder.onnx"
    content = graph_file.read_bytes()
    graph_file.unlink()
    if damage == "truncated":
        graph_file.write_bytes(content[:-1])
    elif damage == "tampered":
        graph_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match="decoder.onnx: "):
        load_graph(tmp_path, "decoder")


def test_a_version_folder_tells_what_is_wrong_with_it(onnx_repository: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="export.json: missing"):
        load_graph(tmp_path, "decoder")
    with pytest.raises(BundleError, match="has no graph 'decoder', only text_encoder"):
        load_graph(onnx_repository / "encode" / VERSION, "decoder")
    record = json.loads((onnx_repository / "encode" / VERSION / "export.json").read_text())
    write_sealed(tmp_path / "export.json", {**record, "contract_version": CONTRACT_VERSION + 97})
    with pytest.raises(BundleError, match=f"contract version {CONTRACT_VERSION + 97}"):
        ExportRecord.read(tmp_path)


def test_the_choice_is_logged(onnx_repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "diffsplat.runtime"):
        load_graph(onnx_repository / "decode" / VERSION, "decoder", threads=1)
    assert "graph decoder of tiny: onnxruntime on cpu in fp32, 1 threads (at export: the only candidate)" in caplog.text


def test_a_graph_that_differs_from_torch_is_refused(tiny_bundle: Bundle, graph: GraphSpec, tmp_path: Path) -> None:
    module = graph.build(tiny_bundle)
    (path,) = write_onnx(graph, module, tmp_path / "graph.onnx")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.001)
    with pytest.raises(ExportError, match=f"graph '{graph.name}' differs from torch"):
        onnx_error(graph, module, path)


@pytest.mark.parametrize(("value", "expected"), [(0.0, 0.0), (0.5, 0.5), (math.nan, math.nan)])
def test_zeros_are_equal_and_no_output_may_be_no_number(value: float, expected: float) -> None:
    """A new ControlNet gives zeros; of several outputs every one counts."""

    def outputs(last: float) -> tuple[torch.Tensor, ...]:
        return torch.zeros(3), torch.ones(3), torch.full((3,), 1.0 + last)

    error = relative_error(outputs(value), outputs(0.0))
    assert error == pytest.approx(expected, nan_ok=True)


def test_gsrecon_of_rgb_alone_equals_torch_too(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Plain blocks of it as well: the published network's predecessors have LayerNorms and no gated MLP."""
    small = {**tiny_bundle.spec.gsrecon, "input_normal": False, "input_coord": False, "llama_style": False}
    spec = dataclasses.replace(tiny_bundle.spec, gsrecon=small)
    graph = next(graph for graph in graph_specs(spec) if graph.name == "gsrecon")
    assert [tensor.axes[2] for tensor in graph.inputs] == [3, 6]
    module = build_graph_module("gsrecon", spec, network_builders(spec)["gsrecon"]())
    (path,) = write_onnx(graph, module, tmp_path / "gsrecon.onnx")
    assert onnx_error(graph, module, path) <= PARITY_LIMIT


def test_a_batch_size_baked_in_by_tracing_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The error that tracing makes most easily: a Python number taken from the sample's shape."""

    class Baked(DenoiserStep):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            rows = int(inputs[0].shape[0])
            return super().forward(*inputs).reshape(rows, *inputs[0].shape[1:])

    graph = next(graph for graph in graph_specs(tiny_bundle.spec) if graph.name == "denoiser")
    module = Baked(bundle_network(tiny_bundle, "denoiser"), tiny_bundle.spec.geometry.views).eval()
    (path,) = write_onnx(graph, module, tmp_path / "graph.onnx")
    with pytest.raises(ExportError, match="graph 'denoiser' does not run at"):
        onnx_error(graph, module, path)


def test_weights_beyond_protobuf_s_limit_go_into_a_file_of_their_own(
    tiny_bundle: Bundle, graph: GraphSpec, tmp_path: Path
) -> None:
    module = graph.build(tiny_bundle)
    files = write_onnx(graph, module, tmp_path / "graph.onnx", single_file_bytes=0)
    assert files == [tmp_path / "graph.onnx", tmp_path / "graph.onnx.data"]
    assert sorted(tmp_path.iterdir()) == files
    assert onnx_error(graph, module, files[0]) <= PARITY_LIMIT


def test_timing_interleaves_and_gives_back_the_thread_count(tiny_bundle: Bundle) -> None:
    calls = []

    class Counting(TorchGraph):
        def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
            calls.append(self.name)
            return super().__call__(*inputs)

    before = torch.get_num_threads()
    graphs = {name: Counting(name, torch.nn.Identity()) for name in ("a", "b")}
    ms = median_ms(graphs, (torch.zeros(1),), threads=before + 1)
    assert calls[:6] == ["a", "b"] * 3 and set(ms) == {"a", "b"} and min(ms.values()) > 0
    assert torch.get_num_threads() == before


def test_a_hopelessly_slow_back_end_is_called_no_more_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    costs_s, clock = {"slow": 0.0625, "fast": 0.0078125}, [0.0]

    class Costly(TorchGraph):
        def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
            calls.append(self.name)
            clock[0] += costs_s[self.name]
            return super().__call__(*inputs)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    graphs = {name: Costly(name, torch.nn.Identity()) for name in costs_s}
    ms = median_ms(graphs, (torch.zeros(1),), threads=1)
    assert calls.count("slow") == 1 + timing.FAIR_ROUNDS and calls.count("fast") == 1 + timing.MAX_ROUNDS
    assert ms == {"slow": 62.5, "fast": 7.8125}


def test_a_graph_without_known_output_size_is_refused(tmp_path: Path) -> None:
    """The runtime allocates the output: a free axis that no input has cannot be served."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("NonZero", ["x"], ["y"])
    inputs = [value("x", onnx.TensorProto.FLOAT, ["rows"])]
    outputs = [value("y", onnx.TensorProto.INT64, [1, "found"])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", inputs, outputs), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(AssertionError, match="found"):
        OnnxGraph("g", tmp_path / "g.onnx", threads=1)
