"""Run an exported graph: one signature, several back ends.

`python -m export` measures the back ends and records the chosen one for every graph in `export.json`. A stage calls
`load_graph(version_folder, "denoiser")` and gets a callable; the choice is logged, and the stage does not depend on it.
"""

import logging
import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backends import BACKENDS, unavailable
from diffsplat.backends.devices import check_precision, exact_float32, find_device, inspect
from diffsplat.backends.eager import TorchGraph
from diffsplat.bundle import Bundle
from diffsplat.export_record import RECORD, ExportRecord, GraphRecord
from diffsplat.graph import Graph, Precision
from diffsplat.integrity import BundleError, verify_file
from diffsplat.networks import build_graph_module, bundle_network, graph_modules, load_network, served_precision

_log = logging.getLogger(__name__)


def available_cores() -> int:
    """Cores on which this process may run, the default number of threads of a graph."""
    return len(os.sched_getaffinity(0))


def bundle_graph(bundle: Bundle, name: str) -> Graph:
    """A graph of a bundle, run by torch, without an export."""
    return bundle_graphs(bundle, [name])[name]


def bundle_graphs(
    bundle: Bundle, names: Iterable[str], precision: Precision = "fp32", device: torch.device | str = "cpu"
) -> dict[str, Graph]:
    """Several graphs of a bundle, run by torch; those of one network share its weights.

    Graphs that must stay in float32 do so in any precision.
    """
    owners = {name: graph_modules(bundle.spec)[name].network for name in names}
    networks = {owner: bundle_network(bundle, owner, precision, device) for owner in dict.fromkeys(owners.values())}
    return {
        name: _torch_graph(name, bundle.spec, networks[owner], served_precision(owner, precision))
        for name, owner in owners.items()
    }


def load_graph(
    folder: str | os.PathLike[str], name: str, threads: int | None = None, device: str | None = None
) -> Graph:
    """One graph of a version folder: see `load_graphs`."""
    return load_graphs(folder, [name], threads, device)[name]


def load_graphs(
    folder: str | os.PathLike[str], names: Iterable[str], threads: int | None = None, device: str | None = None
) -> dict[str, Graph]:
    """Load graphs of a version folder with the back ends that `export` chose; torch graphs share their network.

    Args:
        folder: version folder with `export.json`.
        names: of graphs, keys of `networks.graph_modules`.
        threads: threads of one call, by default the available cores. For torch this sets the number for the process.
        device: "cpu", "cuda" or "cuda:N"; None takes the kind that the folder was exported for.

    Raises:
        BundleError: the record or a graph's file is missing, truncated or edited (the message names the file), the
            folder was exported for another kind of device, or a graph's back end is not installed.
        DeviceError: the device does not exist, or lacks the precision of a graph.
    """
    folder = Path(folder)
    record = ExportRecord.read(folder)
    placed = find_device(device or record.device)
    if placed.type != record.device:
        raise BundleError(f"{folder / RECORD}: exported for {record.device}, not for {placed}: export again for it")
    facts = inspect(str(placed))
    exact_float32()
    threads = threads or available_cores()
    graphs: dict[str, Graph] = {}
    networks: dict[tuple[str, Precision], nn.Module] = {}
    for name in names:
        if name not in record.graphs:
            raise BundleError(f"{folder / RECORD}: has no graph {name!r}, only {', '.join(record.graphs)}")
        graph = record.graphs[name]
        for file, expected in graph.files.items():
            verify_file(folder, RECORD, file, expected)
        if reason := unavailable(graph.backend, record.device, graph.precision):
            raise BundleError(f"{folder / RECORD}: graph {name!r} was exported for {graph.backend}: {reason}")
        check_precision(facts, graph.precision)
        _log.info(
            "graph %s of %s: %s on %s in %s, %d threads (at export: %s)",
            *(name, record.bundle, graph.backend, placed, graph.precision, threads, _comparison(graph)),
        )
        if graph.backend != "torch":
            backend = import_module(BACKENDS[graph.backend].module)  # imported only when chosen
            graphs[name] = backend.load(name, folder, graph, threads, placed)
            continue
        torch.set_num_threads(threads)
        owner = graph_modules(record.spec)[name].network
        key = (owner, graph.precision)
        if key not in networks:
            networks[key] = load_network(folder, graph.files, owner, record.spec, graph.precision, placed)
        graphs[name] = _torch_graph(name, record.spec, networks[key], graph.precision)
    return graphs


def _torch_graph(name: str, spec: BackboneSpec, network: nn.Module, precision: Precision) -> Graph:
    """A graph of a network whose weights are in `precision`."""
    return TorchGraph(name, build_graph_module(name, spec, network, precision), precision)


def _comparison(graph: GraphRecord) -> str:
    """What the choice was made from, in one line."""
    timed = (f"{each.backend} {each.precision} {each.ms:.2f} ms" for each in graph.candidates if each.ms is not None)
    return ", ".join(timed) or "the only candidate"
