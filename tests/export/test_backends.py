"""OpenVINO, AOTInductor and ONNX Runtime's providers: the same results as torch, and clear refusals."""

import dataclasses
import json
import threading
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor_config

from diffsplat.backends import BACKENDS, OPENVINO_CACHE_VARIABLE, unavailable
from diffsplat.backends import aotinductor as compiled
from diffsplat.backends.onnx_providers import CUDA, TENSORRT, missing_provider, read_provider, write_provider
from diffsplat.backends.openvino import BATCHES, OpenVinoGraph, missing_precision, padded_batch
from diffsplat.backends.signature import Signature
from diffsplat.bundle import Bundle
from diffsplat.export_record import GraphRecord
from diffsplat.integrity import BundleError
from diffsplat.runtime import bundle_graph, load_graph
from export.candidates import try_candidates
from export.common import BuildOptions, ExportError
from export.engines import aotinductor as compiler
from export.engines.job import BuildJob
from export.engines.onnx_runtime import tensorrt_options
from export.graph_spec import GraphSpec
from export.graphs import graph_specs
from export.parity import LIMITS, relative_error
from export.repository import VERSION, export_repository

CPU = torch.device("cpu")


def spec_of(bundle: Bundle, name: str) -> GraphSpec:
    return next(graph for graph in graph_specs(bundle.spec) if graph.name == name)


@pytest.fixture(scope="session")
def openvino_repository(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_repository(tiny_bundle.root, tmp_path_factory.mktemp("openvino") / "repository", "openvino").folder


def openvino_graph(repository: Path, stage: str, name: str) -> OpenVinoGraph:
    graph = load_graph(repository / stage / VERSION, name, threads=1)
    assert isinstance(graph, OpenVinoGraph)
    return graph


@pytest.mark.parametrize("name", ["text_encoder", "denoiser_context", "denoiser", "decoder", "gsrecon"])
def test_openvino_equals_torch_at_any_size(name: str, openvino_repository: Path, tiny_bundle: Bundle) -> None:
    graph, expected = spec_of(tiny_bundle, name), bundle_graph(tiny_bundle, name)
    run = openvino_graph(openvino_repository, graph.stage, name)
    assert (run.backend, run.device, run.precision) == ("openvino", CPU, "fp32")
    for rows, tokens in ((2, 8), (5, 3)):
        inputs = graph.sample_inputs({"tokens": tokens, graph.batch_axis: rows}, seed=rows)
        assert relative_error(run(*inputs), expected(*inputs)) <= LIMITS["fp32"], (rows, tokens)


def test_openvino_refuses_wrong_inputs_in_words(openvino_repository: Path, tiny_bundle: Bundle) -> None:
    run = openvino_graph(openvino_repository, "denoise", "denoiser_context")
    with pytest.raises(ValueError, match="takes 1 inputs, not 2"):
        run(torch.zeros(1, 8, 16), torch.zeros(1))
    with pytest.raises(ValueError, match=r"input 'embeddings': float32 \[1, 8, 17\] given on cpu"):
        run(torch.zeros(1, 8, 17))
    with pytest.raises(ValueError, match="float64 .* given"):
        run(torch.zeros(1, 8, 16, dtype=torch.float64))
    latents, plucker, timesteps, context = (graph := spec_of(tiny_bundle, "denoiser")).sample_inputs(
        graph.serving_sizes
    )
    with pytest.raises(ValueError, match="input 'timesteps'"):
        openvino_graph(openvino_repository, "denoise", "denoiser")(latents, plucker, timesteps[:1], context)


def test_openvino_reads_strided_inputs_and_keeps_outputs(openvino_repository: Path) -> None:
    run = openvino_graph(openvino_repository, "denoise", "denoiser_context")
    strided = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(0)).transpose(0, 1)
    first = run(strided)
    kept = first.clone()
    run(torch.zeros(2, 8, 16))
    assert torch.equal(first, kept)
    assert torch.equal(first, run(strided.contiguous()))


def test_openvino_compiles_few_shapes(openvino_repository: Path, tiny_bundle: Bundle) -> None:
    """Batches share a padded shape; when there are too many shapes, the others share a graph of free shapes."""
    graph, expected = spec_of(tiny_bundle, "denoiser_context"), bundle_graph(tiny_bundle, "denoiser_context")
    run = openvino_graph(openvino_repository, "denoise", "denoiser_context")
    run.max_shapes = 2
    shapes = []
    for rows, tokens in ((5, 8), (6, 8), (2, 8), (2, 4), (7, 5), (2, 8)):
        inputs = graph.sample_inputs({"rows": rows, "tokens": tokens}, seed=rows)
        assert relative_error(run(*inputs), expected(*inputs)) <= LIMITS["fp32"]
        shapes.append(run.shapes)
    assert shapes == [1, 1, 2, 3, 3, 3]


def test_every_batch_has_room_in_the_next_shape() -> None:
    assert [padded_batch(batch) for batch in (1, 4, 5, 16, 17, 33)] == [1, 4, 6, 16, 32, 48]
    assert all(padded_batch(batch) == batch for batch in BATCHES)


def test_openvino_takes_compiled_graphs_from_its_cache(
    openvino_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPENVINO_CACHE_VARIABLE, str(tmp_path))
    texts = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    first = openvino_graph(openvino_repository, "denoise", "denoiser_context")(texts)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert kept
    torch.testing.assert_close(
        openvino_graph(openvino_repository, "denoise", "denoiser_context")(texts), first, rtol=0.0, atol=0.0
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept  # nothing was compiled again


def test_openvino_may_be_called_by_several_threads(openvino_repository: Path, tiny_bundle: Bundle) -> None:
    graph = spec_of(tiny_bundle, "denoiser")
    run = openvino_graph(openvino_repository, "denoise", "denoiser")
    cases = [graph.sample_inputs({"rows": 5 + index % 2, "tokens": 8}, seed=index) for index in range(4)]
    alone = [run(*inputs) for inputs in cases]
    together: list[list[Tensor]] = [[] for _ in cases]

    def call(index: int) -> None:
        together[index].extend(run(*cases[index]) for _ in range(5))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, results in zip(alone, together, strict=True):
        assert len(results) == 5 and all(torch.equal(result, expected) for result in results)


def test_openvino_in_bf16_works_or_says_what_the_cpu_lacks(tiny_bundle: Bundle, tmp_path: Path) -> None:
    reason = missing_precision("bf16")
    assert (reason is None) == bool({"avx512_bf16", "amx_bf16"} & cpu_flags())
    if reason is None:
        options = BuildOptions("openvino", "cpu", "bf16")
        has = {}
        for name in ("denoiser", "decoder"):
            (tmp_path / name).mkdir()
            (trial,), _ = try_candidates(spec_of(tiny_bundle, name), tiny_bundle, options, tmp_path / name, print)
            has[name] = trial.run.precision
        assert has == {"denoiser": "bf16", "decoder": "fp32"}  # the decoder's last layers stay in float32
    else:
        with pytest.raises(ExportError, match="openvino has no bf16 on this CPU, which lacks avx512_bf16 or AMX"):
            export_repository(tiny_bundle.root, tmp_path / "out", "openvino", precision="bf16")


def cpu_flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next(line for line in lines if line.startswith("flags")).split())


def test_a_back_end_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffsplat.backends.find_spec", lambda package: None)
    reason = unavailable("openvino", "cpu")
    assert reason == "openvino is not installed: pip install 'diffsplat-triton[openvino]'"


def test_a_signature_that_is_damaged_is_named(openvino_repository: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="decoder.signature.json: not readable"):
        Signature.read(tmp_path, "decoder")
    signature = Signature.read(openvino_repository / "decode" / VERSION, "decoder")
    path = signature.write(tmp_path)
    assert Signature.read(tmp_path, "decoder") == signature
    path.write_text(json.dumps({"graph": "decoder"}))
    with pytest.raises(BundleError, match="decoder.signature.json: not a valid signature"):
        Signature.read(tmp_path, "decoder")


@pytest.fixture(scope="session")
def compiled_context(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest graph, because every compilation takes 10 s of g++."""
    graph, folder = spec_of(tiny_bundle, "denoiser_context"), tmp_path_factory.mktemp("aotinductor")
    files = compiler.build(BuildJob(graph, graph.build(tiny_bundle), folder, "fp32", no_onnx, CPU))
    assert sorted(files) == sorted(folder.iterdir())
    return folder


def no_onnx(precision: str) -> list[Path]:
    raise AssertionError("AOTInductor reads no ONNX file")


RECORD = GraphRecord("denoiser_context.pt2", {}, "aotinductor", "cpu", "fp32", ())


def test_compiled_code_equals_torch_and_needs_no_compiler(
    compiled_context: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # nothing that loading might call is found
    threads = torch.get_num_threads()
    run = compiled.load("denoiser_context", compiled_context, RECORD, threads, CPU)
    graph, expected = spec_of(tiny_bundle, "denoiser_context"), bundle_graph(tiny_bundle, "denoiser_context")
    assert (run.backend, run.device, run.precision) == ("aotinductor", CPU, "fp32")
    for rows, tokens in ((1, 8), (2, 8), (5, 3), (17, 1)):
        inputs = graph.sample_inputs({"rows": rows, "tokens": tokens}, seed=rows)
        assert relative_error(run(*inputs), expected(*inputs)) <= LIMITS["fp32"], (rows, tokens)
    with pytest.raises(ValueError, match=r"input 'embeddings': float32 \[1, 8, 17\] given on cpu"):
        run(torch.zeros(1, 8, 17))
    signature = Signature.read(compiled_context, "denoiser_context")
    limited = dataclasses.replace(signature, largest={"rows": 2, "tokens": 7})
    split = compiled.CompiledGraph(compiled_context / RECORD.file, limited, "fp32", CPU)
    inputs = graph.sample_inputs({"rows": 5, "tokens": 7})
    assert torch.allclose(split(*inputs), run(*inputs), atol=1e-6)
    with pytest.raises(ValueError, match="8 tokens given, at most 7"):
        split(*graph.sample_inputs({"rows": 5, "tokens": 8}))


def test_compiled_code_of_another_machine_is_refused(compiled_context: Path, tmp_path: Path) -> None:
    target = compiled.target_path(compiled_context, "denoiser_context")
    other = {**json.loads(target.read_text()), "processor": "AVX2000 CPUs"}
    compiled.target_path(tmp_path, "denoiser_context").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="was compiled for processor AVX2000 CPUs, .*: export again"):
        compiled.load("denoiser_context", tmp_path, RECORD, 1, CPU)


def test_a_missing_compiler_is_a_refusal(tiny_bundle: Bundle, tmp_path: Path) -> None:
    graph = spec_of(tiny_bundle, "denoiser_context")
    with (
        inductor_config.patch("cpp.cxx", ("no-such-compiler",)),
        pytest.raises(ExportError, match="'denoiser_context': aotinductor compiles with g.., which is not installed"),
    ):
        compiler.build(BuildJob(graph, graph.build(tiny_bundle), tmp_path, "fp32", no_onnx, CPU))
    assert not BACKENDS["aotinductor"].quick


def test_a_missing_provider_names_the_extra() -> None:
    assert missing_provider("cpu") is None
    if CUDA in onnxruntime.get_available_providers():
        assert missing_provider("cuda") is None
    else:
        reason = unavailable("onnxruntime", "cuda")
        assert reason is not None and CUDA in reason and "diffsplat-triton[onnxruntime-gpu]" in reason


def test_tensorrt_s_options_give_the_range_of_every_input(tiny_bundle: Bundle, tmp_path: Path) -> None:
    options = tensorrt_options(spec_of(tiny_bundle, "denoiser"), "bf16")
    assert options == {
        "trt_profile_min_shapes": "latents:1x4x4x8x8,plucker:1x4x6x8x8,timesteps:1,context:1x1x176",
        "trt_profile_opt_shapes": "latents:2x4x4x8x8,plucker:2x4x6x8x8,timesteps:2,context:2x8x176",
        "trt_profile_max_shapes": "latents:16x4x4x8x8,plucker:16x4x6x8x8,timesteps:16,context:16x8x176",
        "trt_bf16_enable": "1",
    }
    write_provider(tmp_path, "denoiser", (TENSORRT, options))
    cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(tmp_path)}
    assert read_provider(tmp_path, "denoiser") == (TENSORRT, {**options, **cache})
