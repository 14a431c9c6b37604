"""The denoising step on every back end that is installed beside torch: built here, loaded, compared, timed."""

import os
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.flops.stages import request_sizes
from benchmarks.gpu.measure import median_of
from benchmarks.gpu.networks import REQUEST, random_network, request_graphs_of, roofline_ms, specs
from benchmarks.gpu.runner import Task
from diffsplat.backbones import BackboneSpec
from diffsplat.backends import BACKENDS, unavailable
from diffsplat.backends.devices import device_type, find_device
from diffsplat.backends.eager import TorchGraph
from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.graph import Backend, Precision
from diffsplat.networks import build_graph_module
from export.candidates import BUILDERS, OnnxFiles, build_files, load_files
from export.engines.cache import FOLDER_VARIABLE
from export.engines.job import BuildJob
from export.graph_spec import GraphSpec
from export.parity import relative_error

BACKBONES = ("sd15", "pixart_sigma", "sd35")
PREFERRED: tuple[Precision, ...] = ("bf16", "fp16", "fp32")
LEAST_S = 30.0  # a build that has less time is not begun


class RandomModules:
    """The modules of one graph as `OnnxFiles` asks for them: one network, copied to where it is wanted."""

    def __init__(self, spec: BackboneSpec, graph: GraphSpec, device: torch.device) -> None:
        self._spec = spec
        self._graph = graph
        self._device = device
        self._made: dict[tuple[Precision, str], nn.Module] = {}

    def __call__(self, precision: Precision = "fp32", device: torch.device | str = "cpu") -> nn.Module:
        """The module in a precision on a device; the weights are the same wherever and however it computes."""
        key = (precision, str(device))
        if key not in self._made:
            torch.manual_seed(0)
            network = random_network(self._spec, self._graph.network(self._spec), self._device, precision)
            module = build_graph_module(self._graph.name, self._spec, network, precision)
            self._made[key] = nn.Module.to(module, device)
        return self._made[key]


def back_ends(task: Task) -> None:
    """A row per backbone and back end, in the first precision that it takes; what cannot be built says why.

    Those that take minutes to build come last.
    """
    chosen = specs(task.settings, BACKBONES)[: 1 if task.settings.tiny else None]
    with tempfile.TemporaryDirectory() as engines:  # of random weights: not among those that are kept
        os.environ[FOLDER_VARIABLE] = engines
        for quick in (True, False):
            for spec in chosen:
                (graph,) = (graph for graph in request_graphs_of(spec) if graph.name == STEP)
                for backend in (backend for backend in BUILDERS if BACKENDS[backend].quick == quick):
                    _try_precisions(task, spec, graph, backend)


def _try_precisions(task: Task, spec: BackboneSpec, graph: GraphSpec, backend: Backend) -> None:
    for precision in PREFERRED:
        reason = _try(task, spec, graph, backend, precision)
        if reason is None:
            break
        task.log.add(backbone=spec.name, back_end=backend, precision=precision, refused=reason)


def _try(task: Task, spec: BackboneSpec, graph: GraphSpec, backend: Backend, precision: Precision) -> str | None:
    """Measure; or why not."""
    device, kind = find_device(task.settings.device), device_type(task.settings.device)
    if reason := unavailable(backend, kind, precision):
        return reason
    if task.left_s < (1.0 if task.settings.tiny else LEAST_S):
        return "no time"
    try:
        with tempfile.TemporaryDirectory() as folder:
            _measure(task, spec, graph, backend, precision, device, Path(folder))
    except Exception as error:  # whatever it is, the others shall be measured
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return None


def _measure(
    task: Task,
    spec: BackboneSpec,
    graph: GraphSpec,
    backend: Backend,
    precision: Precision,
    device: torch.device,
    folder: Path,
) -> None:
    modules = RandomModules(spec, graph, device)
    module = modules(precision, device)
    sizes = request_sizes(spec, graph, REQUEST)
    inputs = tuple(value.to(device) for value in graph.sample_inputs(sizes))
    expected = TorchGraph(graph.name, module, precision)(*inputs)
    started = time.perf_counter()
    own = folder / backend
    own.mkdir()
    job = BuildJob(graph, module, own, precision, OnnxFiles(graph, modules, folder), device)
    files = build_files(backend, job)
    built_s = time.perf_counter() - started
    run = load_files(backend, job, files)
    error = relative_error(run(*inputs), expected)
    ms = median_of(lambda: run(*inputs), device, task.seconds_per_figure)
    limit = roofline_ms(spec, graph)
    task.log.add(
        backbone=spec.name,
        back_end=backend,
        precision=precision,
        ms=ms,
        roofline_ms=limit,
        share_of_roofline=limit / ms,
        error_to_torch=error,
        built_s=built_s,
        megabytes=sum(path.stat().st_size for path in files) / 1e6,
    )
