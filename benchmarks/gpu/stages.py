"""Time and memory of every graph of every full-size backbone, eager and, where the step allows it, replayed."""

import time

import torch

from benchmarks.flops.stages import request_sizes
from benchmarks.gpu.measure import forget_peak, median_of, peak_gb
from benchmarks.gpu.networks import REQUEST, random_graphs, request_graphs_of, roofline_ms, specs
from benchmarks.gpu.runner import Task
from diffsplat.backbones import BackboneSpec
from diffsplat.backends.cuda_graphs import replayed
from diffsplat.backends.devices import find_device
from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.graph import Graph
from export.graph_spec import GraphSpec

LEAST_S = 5.0  # a network that has less time is left out


def stages(task: Task) -> None:
    """A row per graph: bf16, one guided request."""
    device = find_device(task.settings.device)
    for spec in specs(task.settings):
        graphs = request_graphs_of(spec)
        for owner in dict.fromkeys(graph.network(spec) for graph in graphs):
            own = [graph for graph in graphs if graph.network(spec) == owner]
            if task.left_s < (0.5 if task.settings.tiny else LEAST_S):
                task.log.add(backbone=spec.name, graph=own[0].name, how="left out: no time")
                continue
            forget_peak(device)
            started = time.perf_counter()
            runs = random_graphs(spec, [graph.name for graph in own], device, "bf16")
            built_s = time.perf_counter() - started
            for graph in own:
                _time(task, spec, graph, runs[graph.name], "torch", built_s)
            if device.type == "cuda" and STEP in runs:
                (step,) = (graph for graph in own if graph.name == STEP)
                _time(task, spec, step, replayed(runs, (STEP,))[STEP], "torch, CUDA graph", built_s)
            del runs


def _time(task: Task, spec: BackboneSpec, graph: GraphSpec, run: Graph, how: str, built_s: float) -> None:
    inputs = tuple(value.to(run.device) for value in graph.sample_inputs(request_sizes(spec, graph, REQUEST)))
    ms = median_of(lambda: run(*inputs), run.device, task.seconds_per_figure)
    limit = roofline_ms(spec, graph)
    task.log.add(
        backbone=spec.name,
        graph=graph.name,
        how=how,
        precision=run.precision,
        ms=ms,
        roofline_ms=limit,
        share_of_roofline=limit / ms,
        peak_gb=peak_gb(torch.device(run.device)),
        built_s=built_s,
    )
