"""TensorRT engines, really built, by TensorRT-RTX for cards that this machine need not have."""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from diffsplat.backends import unavailable
from diffsplat.backends.engine_file import EngineInfo, ShapeRange, description
from diffsplat.backends.tensorrt import check_fits
from diffsplat.bundle import Bundle
from diffsplat.graph import Precision
from diffsplat.integrity import BundleError
from export.__main__ import main
from export.common import ExportError
from export.engines import tensorrt
from export.engines.cache import EngineCache, engine_key, file_hash
from export.engines.profiles import Limits, is_step, profiles
from export.engines.tensorrt import BuiltEngine, Target, build_engine, find_target
from export.graph_spec import GraphSpec, TensorAxes
from export.graphs import graph_specs
from export.repository import export_repository
from tests.engine_graphs import one_block_unet, write_graph
from tests.families import CLIP_TOKENS, T5_TOKENS, family_spec

ADA = Target("tensorrt_rtx", ("8.9",))
ONE_PROFILE = Limits(max_batch=2, first_rows=4)

# (backbone, graph, precision) -> one engine per family
FAMILIES: dict[str, tuple[str, Precision]] = {
    "unet": ("denoiser", "fp32"),
    "pixart": ("denoiser", "bf16"),
    "sd3": ("denoiser", "fp16"),
    "controlnet": ("hints_canny", "fp16"),
}
SPECS = {
    "unet": one_block_unet,
    "pixart": lambda: family_spec("pixart_sigma"),
    "sd3": lambda: family_spec("sd35"),
    "controlnet": lambda: family_spec("sd15", ("canny",)),
}


def graph_of(family: str, name: str) -> GraphSpec:
    return next(graph for graph in graph_specs(SPECS[family]()) if graph.name == name)


@pytest.fixture(scope="module")
def context_onnx(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A graph of one layer, which TensorRT builds in half a second."""
    folder = tmp_path_factory.mktemp("onnx")
    return write_graph(SPECS["unet"](), graph_of("unet", "denoiser_context"), "fp32", folder)[0]


@pytest.fixture(scope="module")
def context() -> GraphSpec:
    return graph_of("unet", "denoiser_context")


@pytest.fixture(scope="module")
def built(context: GraphSpec, context_onnx: list[Path], tmp_path_factory: pytest.TempPathFactory) -> BuiltEngine:
    """Read only: copy the cache before damaging it."""
    cache = EngineCache(tmp_path_factory.mktemp("cache"))
    return build_engine(context, context_onnx, "fp32", ADA, ONE_PROFILE, cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_of_every_family_has_the_graphs_tensors_and_profiles(family: str, tmp_path: Path) -> None:
    name, precision = FAMILIES[family]
    spec, graph = SPECS[family](), graph_of(family, name)
    files, has = write_graph(spec, graph, precision, tmp_path)
    seen: list[float] = []
    limits = dataclasses.replace(ONE_PROFILE, steps=spec.steps)
    engine = build_engine(graph, files, has, ADA, limits, EngineCache(tmp_path / "cache"), seen.append)
    info = EngineInfo.read(engine.path)  # as a server would
    assert engine.new and info == engine.info
    assert [each.name for each in info.signature.inputs] == [each.name for each in graph.inputs]
    assert [each.axes for each in info.signature.outputs] == [each.axes for each in graph.outputs]
    assert {each.dtype for each in info.signature.inputs} == {"float32"}  # in every precision
    assert has == precision and info.layers > 10 and engine.path.stat().st_size == info.file["bytes"]
    (profile,) = info.profiles
    for tensor in graph.inputs:
        free = {"rows": (1, 4, 4), "objects": (1, 1, 4)} | {
            "tokens": {"unet": (1, CLIP_TOKENS, CLIP_TOKENS), "pixart": (1, T5_TOKENS, T5_TOKENS)}.get(
                family, (1, CLIP_TOKENS + T5_TOKENS, CLIP_TOKENS + T5_TOKENS)
            )
        }
        shapes = (tuple(axis if isinstance(axis, int) else free[axis][i] for axis in tensor.axes) for i in range(3))
        assert profile[tensor.name] == ShapeRange(*shapes), tensor
    assert seen == sorted(seen) and seen[-1] > 0.8  # progress that never goes back


@pytest.mark.parametrize("name", ["sd15", "sdxl", "pixart_sigma", "sd35", "sd15_image"])
def test_profiles_of_every_graph_cover_what_serving_asks_for(name: str) -> None:
    spec = family_spec(name, ("canny",) if name == "sd15" else ())
    steps = 0
    for graph in graph_specs(spec):
        ranges = profiles(graph, Limits(max_batch=4, steps=spec.steps))
        steps += is_step(graph)
        batches = range(1, 9) if is_step(graph) else (1, 2, 3, 4)
        for batch in batches:
            for sizes in (graph.serving_sizes, *graph.parity_sizes):
                shapes = {each.name: _shape(each, {**sizes, graph.batch_axis: batch}) for each in graph.inputs}
                holding = [all(each[name].holds(shape) for name, shape in shapes.items()) for each in ranges]
                assert sum(holding) == 1, (graph.name, batch)
        first = [each[graph.inputs[0].name] for each in ranges]
        expected = (
            [(1, 2, 2), (3, 4, 4), (5, 8, 8)] if is_step(graph) else [(1, graph.serving_sizes[graph.batch_axis], 4)]
        )
        if graph.name != "denoiser_modulations":
            assert [(each.smallest[0], each.best[0], each.largest[0]) for each in first] == expected
    assert steps == (2 if name == "sd15" else 1)


def _shape(tensor: TensorAxes, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes)


def test_the_cache_gives_the_same_engine_again_and_another_key_for_anything_else(
    context: GraphSpec, context_onnx: list[Path], built: BuiltEngine
) -> None:
    cache = EngineCache(built.path.parents[1])
    again = build_engine(context, context_onnx, "fp32", ADA, ONE_PROFILE, cache)
    assert not again.new and again.info == built.info
    ranges = profiles(context, ONE_PROFILE)
    same = (file_hash(context_onnx), "tensorrt_rtx", built.info.version, ("8.9",), "fp32", ranges)
    others = ("0" * 64, "tensorrt", "1.7.0", ("12.0",), "fp16", ranges * 2)
    keys = {engine_key(*same[:i], value, *same[i + 1 :]) for i, value in enumerate(others)}  # type: ignore[arg-type]
    assert len(keys | {engine_key(*same)}) == 7  # type: ignore[arg-type]
    assert built.path.parent.name == f"denoiser_context-{engine_key(*same)}"  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "edited"])
def test_a_damaged_engine_in_the_cache_is_refused(
    damage: str, context: GraphSpec, context_onnx: list[Path], built: BuiltEngine, tmp_path: Path
) -> None:
    shutil.copytree(built.path.parents[1], tmp_path, dirs_exist_ok=True)
    cache = EngineCache(tmp_path)
    path = tmp_path / built.path.relative_to(built.path.parents[1])
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        path.unlink()
    else:
        values = json.loads(description(path).read_text())
        description(path).write_text(json.dumps({**values, "capabilities": ["12.0"]}))
    with pytest.raises(
        ExportError, match=r"graph 'denoiser_context': damaged engine in the cache: .*; delete .* again"
    ):
        build_engine(context, context_onnx, "fp32", ADA, ONE_PROFILE, cache)


def test_a_cache_that_cannot_be_written_is_named(context: GraphSpec, context_onnx: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")  # root may write into read-only folders
    with pytest.raises(ExportError, match=r"graph 'denoiser_context': engine cache .*file/cache is not writable"):
        build_engine(context, context_onnx, "fp32", ADA, ONE_PROFILE, EngineCache(tmp_path / "file" / "cache"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(
    signum: signal.Signals, context: GraphSpec, context_onnx: list[Path], tmp_path: Path
) -> None:
    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    seen: list[float] = []

    def interrupt(done: float) -> None:
        seen.append(done)
        if len(seen) == 10:
            os.kill(os.getpid(), signum)

    before = signal.signal(signum, leave)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(context, context_onnx, "fp32", ADA, ONE_PROFILE, EngineCache(tmp_path), interrupt)
        assert signal.getsignal(signum) is leave
    finally:
        signal.signal(signum, before)
    assert list(tmp_path.iterdir()) == []
    assert len(seen) < 50  # of about 160: the build ended early


def test_a_killed_build_leaves_nothing_that_looks_like_an_engine(
    context: GraphSpec, context_onnx: list[Path], tmp_path: Path
) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from export.engines.cache import EngineCache\n"
        "with EngineCache(Path(sys.argv[1])).adding('denoiser_context', 'key') as folder:\n"
        "    (folder / 'denoiser_context.engine').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    (remains,) = tmp_path.iterdir()
    assert remains.name.startswith(".building-")
    assert EngineCache(tmp_path).find("denoiser_context", "key") is None
    build_engine(context, context_onnx, "fp32", ADA, ONE_PROFILE, EngineCache(tmp_path))
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["denoiser_context"]


def test_an_engine_of_another_version_or_card_is_refused_before_it_is_loaded(built: BuiltEngine) -> None:
    check_fits(built.path, built.info, "8.9")
    with pytest.raises(BundleError, match=r"graph 'denoiser_context': built for compute capability 8.9, this card has"):
        check_fits(built.path, built.info, "9.0")
    older = dataclasses.replace(built.info, version="1.6.0.1")
    installed = importlib.metadata.version("tensorrt-rtx-cu13")
    with pytest.raises(BundleError, match=rf"built by tensorrt_rtx 1.6.0.1, installed is {installed}: export again"):
        check_fits(built.path, older, "8.9")
    classic = dataclasses.replace(built.info, module="tensorrt")
    with pytest.raises(BundleError, match=r"tensorrt is not installed: pip install 'diffsplat-triton\[tensorrt\]'"):
        check_fits(built.path, classic, "9.0")


def test_an_unsupported_operator_is_named(context: GraphSpec, tmp_path: Path) -> None:
    node = helper.make_node("Det", ["embeddings"], ["context"], name="/layer/Det")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("embeddings", "context")]
    graph = helper.make_graph([node], "graph", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "det.onnx")
    with pytest.raises(ExportError, match=r"graph 'denoiser_context': tensorrt_rtx .*: operator Det at /layer/Det is"):
        build_engine(context, [tmp_path / "det.onnx"], "fp32", ADA, ONE_PROFILE, EngineCache(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_engine_whose_tensors_are_not_the_graphs_is_refused(
    context: GraphSpec, context_onnx: list[Path], tmp_path: Path
) -> None:
    (output,) = context.outputs
    other = dataclasses.replace(context, outputs=(output._replace(axes=(*output.axes[:2], 7)),))
    with pytest.raises(ExportError, match=r"its engine has tensor \('context', .*, expected \('context', .* 7\)\)"):
        build_engine(other, context_onnx, "fp32", ADA, ONE_PROFILE, EngineCache(tmp_path))


def test_a_missing_builder_and_a_card_that_it_does_not_know_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"graph 'denoiser': tensorrt_rtx builds for .* not for 9.0; .*\[tensorrt\]'"):
        find_target(["9.0"], "fp16", "denoiser")
    assert find_target([], "fp16", "denoiser").capabilities == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    assert find_target([], "bf16", "denoiser").capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    with pytest.raises(ExportError, match=r"graph 'denoiser': compute capability 7.5 has no bf16, which 8.0 and newer"):
        find_target(["7.5"], "bf16", "denoiser")
    monkeypatch.setattr(tensorrt, "installed_modules", lambda: ())
    with pytest.raises(ExportError, match=r"graph 'denoiser': no TensorRT builder is installed: .*\[tensorrt-rtx\]'"):
        find_target(["8.9"], "fp16", "denoiser")
    monkeypatch.setattr(tensorrt, "installed_modules", lambda: ("tensorrt",))
    with pytest.raises(ExportError, match=r"asked for 8.9, there is no card. .*\[tensorrt-rtx\]'"):
        find_target(["8.9"], "fp16", "denoiser")


def test_the_back_end_says_where_it_runs_and_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable("tensorrt", "cuda", "bf16") is None
    assert unavailable("tensorrt", "cpu") == "tensorrt does not run on cpu, only on cuda"
    monkeypatch.setattr("diffsplat.backends.find_spec", lambda name: None)
    assert unavailable("tensorrt", "cuda") == (
        "tensorrt or tensorrt_rtx is not installed: pip install 'diffsplat-triton[tensorrt]'"
    )


def test_the_command_builds_from_a_bundle_and_finds_the_engine_for_its_repository(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # of the table
    repository = export_repository(tiny_bundle.root, tmp_path / "repository", backend="torch").folder
    options = ["--precision", "fp32", "--compute-capability", "8.9", "--graph", "denoiser_context"]
    options += ["--cache", str(tmp_path / "cache")]
    assert main(["engines", str(tiny_bundle.root), *options]) == 0
    assert "built" in capsys.readouterr().out
    assert main(["engines", str(repository), *options]) == 0
    assert "was there" in capsys.readouterr().out  # the same graph, byte for byte
    assert main(["engines", str(tiny_bundle.root), *options, "--graph", "denoser"]) == 1
    assert "has no graph 'denoser', only text_encoder" in capsys.readouterr().err
    assert main(["engines", str(tmp_path / "nothing"), *options]) == 1
    assert "nothing" in capsys.readouterr().err
