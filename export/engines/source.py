"""ONNX files to build engines from: of a bundle, or of a served repository."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import open_bundle
from diffsplat.export_record import RECORD, ExportRecord, GraphRecord
from diffsplat.graph import Precision
from diffsplat.integrity import BundleError, verify_file
from diffsplat.networks import build_graph_module, load_network, served_precision
from diffsplat.serving.repository.versions import served_version
from export.common import ExportError, served_stages
from export.graph_spec import GraphSpec
from export.graphs import graph_specs
from export.to_onnx import write_onnx

# (graph, asked precision, folder for new files) -> ONNX file and its weights, the precision that they have
OnnxWriter = Callable[[str, Precision, Path], tuple[list[Path], Precision]]


@dataclass(frozen=True)
class Source:
    """Graphs, and how to get their ONNX files."""

    spec: BackboneSpec
    graphs: Mapping[str, GraphSpec]
    onnx: OnnxWriter


def open_source(folder: Path) -> Source:
    """The graphs of a bundle, or of a repository that `python -m export` wrote.

    Raises:
        BundleError: it is neither, or damaged.
    """
    return _repository(folder) if (folder / RECORD).is_file() else _bundle(folder)


def _bundle(folder: Path) -> Source:
    bundle = open_bundle(folder)
    stages = served_stages(bundle)
    graphs = {graph.name: graph for graph in graph_specs(bundle.spec) if graph.stage in stages}

    def onnx(name: str, precision: Precision, into: Path) -> tuple[list[Path], Precision]:
        graph = graphs[name]
        module = graph.build(bundle, precision)
        return write_onnx(graph, module, into / f"{name}.onnx"), served_precision(graph.network(bundle.spec), precision)

    return Source(bundle.spec, graphs, onnx)


def _repository(folder: Path) -> Source:
    records: dict[str, tuple[Path, GraphRecord]] = {}
    spec = None
    for path in sorted(folder.glob(f"*/{served_version(folder)}/{RECORD}")):
        record = ExportRecord.read(path.parent)
        spec = record.spec
        records |= {name: (path.parent, graph) for name, graph in record.graphs.items()}
    if spec is None:
        raise BundleError(f"{folder}: holds no version folder with {RECORD}; `python -m export` writes them")
    backbone = spec
    graphs = {graph.name: graph for graph in graph_specs(backbone) if graph.name in records}

    def onnx(name: str, precision: Precision, into: Path) -> tuple[list[Path], Precision]:
        (version, record), graph = records[name], graphs[name]
        owner = graph.network(backbone)
        wanted = served_precision(owner, precision)
        for file, expected in record.files.items():
            verify_file(version, RECORD, file, expected)
        if record.backend == "torch":
            network = load_network(version, record.files, owner, backbone, precision)
            module = build_graph_module(name, backbone, network, wanted)
            return write_onnx(graph, module, into / f"{name}.onnx"), wanted
        files = [version / file for file in record.files if file.endswith((".onnx", ".onnx.data"))]
        if not files or record.precision != wanted:
            raise ExportError(
                f"graph {name!r}: {folder} holds it for {record.backend} in {record.precision}, from which no engine "
                f"in {wanted} can be made: give the bundle"
            )
        return files, wanted

    return Source(backbone, graphs, onnx)
