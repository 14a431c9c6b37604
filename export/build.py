"""Export the graphs of a bundle into their version folders: write, compare, time, choose a back end.

All heavy imports of an export are here, so that an export that is up to date never pays for them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.onnx_runtime import OnnxGraph
from diffsplat.bundle import Bundle
from diffsplat.export_record import GraphRecord
from diffsplat.graph import Backend, Graph
from diffsplat.integrity import describe_file
from diffsplat.runtime import available_cores
from diffsplat.weights import weight_files
from export.common import VERSION, ProgressCallback, RuntimeChoice, served_stages
from export.graph_spec import GraphSpec
from export.graphs import graph_specs
from export.timing import choose_backend, median_ms
from export.to_onnx import parity, write_onnx

STEPS_PER_GRAPH = 4


def export_graphs(
    bundle: Bundle, staging: Path, runtime: RuntimeChoice, progress: ProgressCallback
) -> dict[str, dict[str, GraphRecord]]:
    """Export all graphs into their version folders; returns stage -> graph -> record."""
    records: dict[str, dict[str, GraphRecord]] = {stage: {} for stage in served_stages(bundle)}
    specs = [graph for graph in graph_specs(bundle.spec) if graph.stage in records]
    for index, graph in enumerate(specs):

        def report(text: str, step: int, graph: GraphSpec = graph, index: int = index) -> None:
            progress(f"{graph.name}: {text}", index * STEPS_PER_GRAPH + step, len(specs) * STEPS_PER_GRAPH)

        folder = staging / graph.stage / VERSION
        records[graph.stage][graph.name] = _export_graph(graph, bundle, folder, runtime, report)
    progress("done", len(specs) * STEPS_PER_GRAPH, len(specs) * STEPS_PER_GRAPH)
    return records


def _export_graph(
    graph: GraphSpec, bundle: Bundle, folder: Path, runtime: RuntimeChoice, report: Callable[[str, int], None]
) -> GraphRecord:
    threads = available_cores()
    report("building", 0)
    module = graph.build(bundle)
    candidates: dict[Backend, Graph] = {"torch": TorchGraph(graph.name, module)}
    onnx_files: list[Path] = []
    error = None
    if runtime != "torch":
        report("writing", 1)
        onnx_files = write_onnx(graph, module, folder / f"{graph.name}.onnx")
        report("comparing", 2)
        error = parity(graph, module, onnx_files[0], threads)
        candidates["onnxruntime"] = OnnxGraph(graph.name, onnx_files[0], threads)
    ms: dict[Backend, float] = {}
    if runtime == "auto":
        report("timing", 3)
        ms = median_ms(candidates, graph.sample_inputs(graph.serving_sizes), threads)
    backend: Backend = choose_backend(ms) if runtime == "auto" else runtime
    if backend == "torch":
        for path in onnx_files:
            path.unlink()
        files = [folder / name for name in weight_files(bundle.root, bundle.files, graph.network(bundle.spec))]
        for path in files:
            shutil.copyfile(bundle.root / path.name, path)
    else:
        files = onnx_files
    return GraphRecord(files[0].name, {path.name: describe_file(path) for path in files}, backend, error, ms)
