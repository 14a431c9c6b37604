"""Export the graphs of a bundle into their version folders: build the candidates, choose one, keep its files.

All heavy imports of an export are here, so that an export that is up to date never pays for them.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from diffsplat.bundle import Bundle
from diffsplat.export_record import GraphRecord
from diffsplat.integrity import describe_file
from export.candidates import try_candidates
from export.common import BuildOptions, ProgressCallback, served_stages
from export.graph_spec import GraphSpec
from export.graphs import graph_specs
from export.timing import choose


def export_graphs(
    bundle: Bundle, staging: Path, version: str, options: BuildOptions, progress: ProgressCallback
) -> dict[str, dict[str, GraphRecord]]:
    """Export all graphs into the folders of a version; returns stage -> graph -> record."""
    records: dict[str, dict[str, GraphRecord]] = {stage: {} for stage in served_stages(bundle)}
    specs = [graph for graph in graph_specs(bundle.spec) if graph.stage in records]
    for index, graph in enumerate(specs):

        def report(text: str, graph: GraphSpec = graph, index: int = index) -> None:
            progress(f"{graph.name}: {text}", index, len(specs))

        folder = staging / graph.stage / version
        records[graph.stage][graph.name] = _export_graph(graph, bundle, folder, options, report)
    progress("done", len(specs), len(specs))
    return records


def _export_graph(
    graph: GraphSpec, bundle: Bundle, folder: Path, options: BuildOptions, report: Callable[[str], None]
) -> GraphRecord:
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{graph.name}-") as scratch:
        trials, refused = try_candidates(graph, bundle, options, Path(scratch), report)
        candidates = [trial.candidate for trial in trials]
        chosen = choose(candidates) if len(candidates) > 1 else candidates[0]
        sources = trials[candidates.index(chosen)].files
        files = [folder / path.name for path in sources]
        for source, path in zip(sources, files, strict=True):
            if source.is_relative_to(scratch):
                source.replace(path)
            else:  # a file of the bundle
                shutil.copyfile(source, path)
    described = {path.name: describe_file(path) for path in files}
    tried = (*candidates, *refused)
    return GraphRecord(files[0].name, described, chosen.backend, chosen.device, chosen.precision, tried)
