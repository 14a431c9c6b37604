"""Full-size networks with random weights, made on the device and in the type they compute in, one at a time."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.flops import stages as counted
from benchmarks.gpu.runner import Settings
from diffsplat.backbones import BACKBONES, BackboneSpec
from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.precision import DTYPES, cast_network
from diffsplat.graph import Precision
from diffsplat.networks import FLOAT32_PARTS, build_graph_module, graph_modules, network_builders, served_precision
from diffsplat.splats.gsrecon import GSRECON
from export.graph_spec import GraphSpec
from export.graphs import graph_specs
from tests.families import family_spec

FULL_SIZE = ("sd15", "sdxl", "pixart_alpha", "pixart_sigma", "sd3", "sd35")
TINY = ("sd15", "pixart_sigma", "sd35")
STEPS = {"sd3": 28, "sd35": 28}  # the published defaults; 20 for the others
REQUEST = counted.Settings()
_COUNTED = Path(__file__).resolve().parents[1] / "results" / "flops.json"


def specs(settings: Settings, names: tuple[str, ...] = FULL_SIZE) -> list[BackboneSpec]:
    """The backbones of a run."""
    if settings.tiny:
        return [family_spec(name) for name in TINY if name in names]
    return [replace(BACKBONES[name], steps=STEPS.get(name, 20)) for name in names]


def request_graphs_of(spec: BackboneSpec) -> list[GraphSpec]:
    """Graphs that a plain request runs."""
    return [graph for graph in graph_specs(spec) if graph.name != GSRECON]


def random_network(spec: BackboneSpec, name: str, device: torch.device, precision: Precision) -> nn.Module:
    """A network of `network_builders` as it would be loaded, but freshly initialised."""
    used, parts = served_precision(name, precision), FLOAT32_PARTS.get(name, ())
    with _default_type(DTYPES[used]), torch.device(device):
        network = network_builders(spec)[name]()
    network = nn.Module.to(network, device).eval().requires_grad_(False)  # what an initialisation made on the host
    cast_network(network, used, parts)
    for part in parts:
        nn.Module.float(network.get_submodule(part))
    return network


def random_graphs(
    spec: BackboneSpec, names: list[str], device: torch.device, precision: Precision
) -> dict[str, TorchGraph]:
    """Graphs of random networks, run by torch; those of one network share its weights."""
    owners = {name: graph_modules(spec)[name].network for name in names}
    networks = {owner: random_network(spec, owner, device, precision) for owner in dict.fromkeys(owners.values())}
    graphs = {}
    for name, owner in owners.items():
        used = served_precision(owner, precision)
        graphs[name] = TorchGraph(name, build_graph_module(name, spec, networks[owner], used), used)
    return graphs


@contextmanager
def _default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@functools.cache
def _counted_figures() -> dict[str, dict[str, dict[str, float]]]:
    backbones = json.loads(_COUNTED.read_text())["backbones"]
    return {name: figures["stages"] for name, figures in backbones.items()}


def roofline_ms(spec: BackboneSpec, graph: GraphSpec) -> float:
    """Least possible milliseconds of a graph on an H200 in bf16: counted by `benchmarks.flops`."""
    if spec.name in _counted_figures():
        return _counted_figures()[spec.name][graph.name]["roofline_ms"]
    network = counted.meta_network(spec, graph.network(spec))
    module = build_graph_module(graph.name, spec, network)
    return counted.count(module, *counted.meta_inputs(spec, graph, REQUEST)).work.roofline_s * 1e3
