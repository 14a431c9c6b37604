"""Run an exported graph: one signature, several back ends.

`python -m export` measures the back ends and records the faster one for every graph in `export.json`. A stage calls
`load_graph(version_folder, "denoiser")` and gets a callable; the choice is logged, and the stage does not depend on it.
Graphs take positional tensors, float32 (token ids: int64), and return one or several, all on the CPU.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from diffsplat.backends.eager import TorchGraph
from diffsplat.bundle import Bundle
from diffsplat.export_record import RECORD, ExportRecord
from diffsplat.graph import Graph
from diffsplat.integrity import BundleError, verify_file
from diffsplat.networks import build_graph_module, bundle_network, graph_modules, load_network

_log = logging.getLogger(__name__)


def available_cores() -> int:
    """Cores on which this process may run, the default number of threads of a graph."""
    return len(os.sched_getaffinity(0))


def bundle_graph(bundle: Bundle, name: str) -> Graph:
    """A graph of a bundle, run by torch, without an export."""
    return bundle_graphs(bundle, [name])[name]


def bundle_graphs(bundle: Bundle, names: Iterable[str]) -> dict[str, Graph]:
    """Several graphs of a bundle; those of one network share its weights."""
    owners = {name: graph_modules(bundle.spec)[name].network for name in names}
    networks = {owner: bundle_network(bundle, owner) for owner in dict.fromkeys(owners.values())}
    return {
        name: TorchGraph(name, build_graph_module(name, bundle.spec, networks[owner])) for name, owner in owners.items()
    }


def load_graph(folder: str | os.PathLike[str], name: str, threads: int | None = None) -> Graph:
    """One graph of a version folder: see `load_graphs`."""
    return load_graphs(folder, [name], threads)[name]


def load_graphs(folder: str | os.PathLike[str], names: Iterable[str], threads: int | None = None) -> dict[str, Graph]:
    """Load graphs of a version folder with the back ends that `export` chose; torch graphs share their network.

    Args:
        folder: version folder with `export.json`.
        names: of graphs, keys of `networks.graph_modules`.
        threads: threads of one call, by default the available cores. For torch this sets the number for the process.

    Raises:
        BundleError: the record or a graph's file is missing, truncated or edited; the message names the file.
    """
    folder = Path(folder)
    record = ExportRecord.read(folder)
    threads = threads or available_cores()
    graphs: dict[str, Graph] = {}
    networks: dict[str, nn.Module] = {}
    for name in names:
        if name not in record.graphs:
            raise BundleError(f"{folder / RECORD}: has no graph {name!r}, only {', '.join(record.graphs)}")
        graph = record.graphs[name]
        for file, expected in graph.files.items():
            verify_file(folder, RECORD, file, expected)
        why = ", ".join(f"{backend} {ms:.2f} ms" for backend, ms in graph.ms.items()) or "forced"
        _log.info("graph %s of %s: %s, %d threads (at export: %s)", name, record.bundle, graph.backend, threads, why)
        if graph.backend == "onnxruntime":
            from diffsplat.backends.onnx_runtime import OnnxGraph  # imported only when chosen

            graphs[name] = OnnxGraph(name, folder / graph.file, threads)
            continue
        torch.set_num_threads(threads)
        owner = graph_modules(record.spec)[name].network
        if owner not in networks:
            networks[owner] = load_network(folder, graph.files, owner, record.spec)
        graphs[name] = TorchGraph(name, build_graph_module(name, record.spec, networks[owner]))
    return graphs
