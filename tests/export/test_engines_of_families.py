"""The TensorRT engine of every graph of every family, very small: `make test-tensorrt`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffsplat.backbones import BackboneSpec
from diffsplat.graph import Precision
from export.engines.cache import EngineCache
from export.engines.profiles import Limits, profiles
from export.engines.tensorrt import Target, build_engine
from export.graphs import graph_specs
from tests.engine_graphs import write_graph
from tests.families import family_spec

pytestmark = pytest.mark.tensorrt

ADA_AND_BLACKWELL = Target("tensorrt_rtx", ("8.9", "12.0"))
SPECS: dict[str, tuple[Callable[[], BackboneSpec], Precision]] = {
    "sd15": (lambda: family_spec("sd15", ("canny",), images=True), "fp16"),
    "sd15_image": (lambda: family_spec("sd15_image"), "bf16"),
    "sdxl": (lambda: family_spec("sdxl", ("depth",)), "fp16"),
    "pixart_sigma": (lambda: family_spec("pixart_sigma"), "bf16"),
    "pixart_alpha_image": (lambda: family_spec("pixart_alpha_image"), "fp32"),
    "sd3": (lambda: family_spec("sd3"), "fp32"),
    "sd35": (lambda: family_spec("sd35"), "bf16"),
    "sd35_image": (lambda: family_spec("sd35_image"), "fp16"),
}
GRAPHS = [(name, graph.name) for name, (spec, _) in SPECS.items() for graph in graph_specs(spec())]


@pytest.mark.parametrize(("name", "graph_name"), GRAPHS)
def test_the_engine_is_built_with_the_profiles_of_the_service(name: str, graph_name: str, tmp_path: Path) -> None:
    build, precision = SPECS[name]
    spec = build()
    graph = next(graph for graph in graph_specs(spec) if graph.name == graph_name)
    limits = Limits(max_batch=2, steps=spec.steps)
    files, has = write_graph(spec, graph, precision, tmp_path)
    engine = build_engine(graph, files, has, ADA_AND_BLACKWELL, limits, EngineCache(tmp_path / "cache"))
    assert engine.info.profiles == profiles(graph, limits)
    assert engine.info.capabilities == ("8.9", "12.0") and engine.info.precision == has
    assert engine.path.stat().st_size == engine.info.file["bytes"] > 10_000
