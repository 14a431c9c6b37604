"""What this machine can build of one graph: built, compared with torch and timed, or refused with the reason."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from diffsplat.backends import BACKENDS, unavailable
from diffsplat.backends.devices import (
    DeviceError,
    check_memory,
    check_precision,
    cuda_free_bytes,
    device_type,
    exact_float32,
    find_device,
    inspect,
)
from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.precision import DTYPES
from diffsplat.bundle import Bundle
from diffsplat.export_record import Candidate, GraphRecord
from diffsplat.graph import Backend, Graph, Precision
from diffsplat.integrity import BundleError
from diffsplat.networks import served_precision
from diffsplat.runtime import available_cores
from diffsplat.weights import weight_files
from export.common import BuildOptions, ExportError
from export.engines.job import BuildJob
from export.graph_spec import GraphSpec
from export.parity import Reference
from export.timing import median_ms
from export.to_onnx import write_onnx

# Back end -> module with `build(job) -> files`. It writes what `load` of the back end reads, the first file being the
# record's, and raises ExportError if the graph cannot be built.
BUILDERS: dict[Backend, str] = {
    "onnxruntime": "export.engines.onnx_runtime",
    "openvino": "export.engines.openvino",
    "aotinductor": "export.engines.aotinductor",
    "tensorrt": "export.engines.tensorrt",
}
COMPETING: tuple[Precision, ...] = ("fp32", "bf16")  # when the precision is left to the measurement


@dataclass(frozen=True)
class Trial:
    """A candidate that can serve the graph."""

    candidate: Candidate
    files: list[Path]  # for torch those of the bundle
    run: Graph


class GraphModules:
    """The torch modules of one graph, each built once; inputs and outputs are float32 in any precision."""

    def __init__(self, graph: GraphSpec, bundle: Bundle) -> None:
        self._graph = graph
        self._bundle = bundle
        self._modules: dict[tuple[Precision, str], nn.Module] = {}

    def __call__(self, precision: Precision = "fp32", device: torch.device | str = "cpu") -> nn.Module:
        """The module in a precision on a device."""
        key = (precision, str(device))
        if key not in self._modules:
            self._modules[key] = self._graph.build(self._bundle, precision, device)
        return self._modules[key]


class OnnxFiles:
    """The ONNX files of one graph, one set per precision: written when first asked for, shared by the back ends."""

    def __init__(self, graph: GraphSpec, modules: Callable[[Precision], nn.Module], folder: Path) -> None:
        self._graph = graph
        self._modules = modules
        self._folder = folder
        self._files: dict[Precision, list[Path]] = {}

    def __call__(self, precision: Precision) -> list[Path]:
        """`<graph>.onnx`, and where its weights are large `<graph>.onnx.data` beside it."""
        if precision not in self._files:
            folder = self._folder / f"onnx-{precision}"
            folder.mkdir(parents=True)
            path = folder / f"{self._graph.name}.onnx"
            self._files[precision] = write_onnx(self._graph, self._modules(precision), path)
        return self._files[precision]


def build_files(backend: Backend, job: BuildJob) -> list[Path]:
    """Build a graph for a back end; ExportError says why it cannot be built."""
    files: list[Path] = import_module(BUILDERS[backend]).build(job)
    return files


def load_files(backend: Backend, job: BuildJob, files: list[Path]) -> Graph:
    """Load what `build_files` made, as a stage would."""
    record = GraphRecord(files[0].name, {}, backend, device_type(str(job.device)), job.precision, ())
    load = import_module(BACKENDS[backend].module).load
    run: Graph = load(job.graph.name, files[0].parent, record, available_cores(), job.device)
    return run


def try_candidates(
    graph: GraphSpec, bundle: Bundle, options: BuildOptions, folder: Path, report: Callable[[str], None]
) -> tuple[list[Trial], list[Candidate]]:
    """Build, compare and time the candidates of a graph.

    Args:
        graph: what to build.
        bundle: its weights.
        options: which candidates there are, and on which device they run.
        folder: an empty folder for all their files.
        report: called at every step.

    Returns:
        Those that can serve the graph, and those that cannot.

    Raises:
        ExportError: none is left, or the one back end that the options name cannot serve the graph.
    """
    report("building")
    exact_float32()
    workshop = _Workshop(graph, bundle, find_device(options.device), folder)
    trials: list[Trial] = []
    refused: list[Candidate] = []
    for candidate in _candidates(graph.network(bundle.spec), options):
        report(f"{candidate.backend} {candidate.precision}")
        try:
            trials.append(workshop.attempt(candidate))
        except ExportError as error:
            if options.backend == candidate.backend and options.precision != "auto":
                raise  # there is no other candidate
            refused.append(replace(candidate, refused=str(error).removeprefix(f"graph {graph.name!r}: ")))
    if not trials:
        reasons = "; ".join(f"{each.backend} {each.precision}: {each.refused}" for each in refused)
        raise ExportError(f"graph {graph.name!r}: no back end can serve it: {reasons}")
    if len(trials) > 1:
        report("timing")
        runs = {index: trial.run for index, trial in enumerate(trials)}
        ms = median_ms(runs, graph.sample_inputs(graph.serving_sizes), available_cores())
        trials = [replace(trial, candidate=replace(trial.candidate, ms=ms[i])) for i, trial in enumerate(trials)]
    return trials, refused


def _candidates(network: str, options: BuildOptions) -> list[Candidate]:
    """What the options allow, in the order of `BACKENDS`."""
    device = device_type(options.device)
    if options.backend == "auto" or options.backend == "all":
        backends = [name for name, info in BACKENDS.items() if device in info.precisions]
        backends = [name for name in backends if BACKENDS[name].quick or options.backend == "all"]
    else:
        backends = [options.backend]
    asked = COMPETING if options.precision == "auto" else (options.precision,)
    served = [
        (backend, served_precision(network, precision, BACKENDS[backend].mixes_precisions))
        for backend in backends
        for precision in asked
    ]
    return [Candidate(backend, device, precision) for backend, precision in dict.fromkeys(served)]


class _Workshop:
    """Builds candidates of one graph; what several of them need is made once."""

    def __init__(self, graph: GraphSpec, bundle: Bundle, device: torch.device, folder: Path) -> None:
        self.graph = graph
        self.bundle = bundle
        self.device = device
        self.folder = folder
        self.modules = GraphModules(graph, bundle)
        self.onnx = OnnxFiles(graph, self.modules, folder)
        self.reference = Reference(graph, self.modules())

    def attempt(self, candidate: Candidate) -> Trial:
        """Build, load and compare. ExportError names the graph and why the candidate cannot serve it."""
        backend, precision = candidate.backend, candidate.precision
        if reason := unavailable(backend, candidate.device, precision):
            raise ExportError(f"graph {self.graph.name!r}: {reason}")
        weights = self._weight_bytes(precision)
        self._check_card(weights, precision)
        try:
            job = None if backend == "torch" else self._job(backend, precision)
            files = self._torch_files() if job is None else build_files(backend, job)
            free = self._free_bytes()
            run = self._torch_graph(precision) if job is None else load_files(backend, job, files)
        except torch.OutOfMemoryError as failure:
            raise ExportError(f"graph {self.graph.name!r}: {str(failure).splitlines()[0]}") from None
        except BundleError as failure:
            raise ExportError(f"graph {self.graph.name!r}: {backend} cannot load its own files: {failure}") from None
        is_reference = (backend, precision, candidate.device) == ("torch", "fp32", "cpu")
        error = None if is_reference else self.reference.compare(run)
        memory = max(weights, free - self._free_bytes())
        megabytes = sum(path.stat().st_size for path in files) / 1e6
        return Trial(replace(candidate, error=error, megabytes=megabytes, memory_mb=memory / 1e6), files, run)

    def _weight_bytes(self, precision: Precision) -> int:
        """Of the graph's network, were all of it in this precision."""
        numbers = sum(tensor.numel() for tensor in self.modules().state_dict().values())
        return numbers * DTYPES[precision].itemsize

    def _check_card(self, weights: int, precision: Precision) -> None:
        """ExportError if the card lacks the precision, or if not even the weights fit."""
        facts = inspect(str(self.device))
        try:
            check_precision(facts, precision)
            check_memory(facts, weights, f"graph {self.graph.name!r} in {precision}")
        except DeviceError as error:
            raise ExportError(str(error)) from None

    def _free_bytes(self) -> int:
        """Of the card; 0 for a CPU, whose memory other processes use as well."""
        return cuda_free_bytes(self.device.index) if self.device.type == "cuda" else 0

    def _torch_files(self) -> list[Path]:
        bundle = self.bundle
        return [bundle.root / name for name in weight_files(bundle.root, bundle.files, self.graph.network(bundle.spec))]

    def _torch_graph(self, precision: Precision) -> Graph:
        return TorchGraph(self.graph.name, self.modules(precision, self.device), precision)

    def _job(self, backend: Backend, precision: Precision) -> BuildJob:
        own = self.folder / f"{backend}-{precision}"
        own.mkdir()
        return BuildJob(self.graph, self.modules(precision, self.device), own, precision, self.onnx, self.device)
