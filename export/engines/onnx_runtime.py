"""ONNX Runtime: the ONNX file, and on a GPU the faster one of its providers for CUDA and TensorRT."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime

from diffsplat.backends.onnx_providers import CUDA, TENSORRT, Provider, missing_provider, read_provider, write_provider
from diffsplat.backends.onnx_runtime import OnnxCudaGraph
from diffsplat.graph import Precision
from diffsplat.runtime import available_cores
from export.common import ExportError
from export.engines.job import BuildJob
from export.graph_spec import GraphSpec
from export.timing import median_ms

MAX_BATCH = 16  # rows of eight requests with guidance


def build(job: BuildJob) -> list[Path]:
    """Link the ONNX file, on a GPU with the provider that measures faster and TensorRT's engines.

    Raises:
        ExportError: this ONNX Runtime has no provider for the device.
    """
    graph, folder, precision, device = job.graph, job.folder, job.precision, job.device
    if reason := missing_provider(device.type):
        raise ExportError(f"graph {graph.name!r}: {reason}")
    files = job.link_onnx(precision)
    if device.type == "cpu":
        return files
    providers: list[Provider] = [(CUDA, {})]
    if TENSORRT in onnxruntime.get_available_providers():
        providers.append((TENSORRT, tensorrt_options(graph, precision)))
    inputs = tuple(tensor.to(device) for tensor in graph.sample_inputs(graph.serving_sizes))
    runs = {}
    for index, provider in enumerate(providers):
        write_provider(folder, graph.name, provider)
        try:  # the session builds TensorRT's engines, unless it cannot
            provider = read_provider(folder, graph.name)
            runs[index] = OnnxCudaGraph(graph.name, files[0], available_cores(), precision, device, provider)
            runs[index](*inputs)
        except RuntimeError as error:
            raise ExportError(f"graph {graph.name!r}: {provider[0]} cannot run it: {error}") from None
    ms = median_ms(runs, inputs, available_cores())
    write_provider(folder, graph.name, providers[min(ms, key=lambda index: ms[index])])
    return [*files, *sorted(path for path in folder.iterdir() if path not in files)]


def tensorrt_options(graph: GraphSpec, precision: Precision) -> Mapping[str, str]:
    """Options of the TensorRT provider for a graph, without those of a machine: precision and ranges of shapes."""
    smallest = {axis: 1 for axis in graph.serving_sizes}
    largest = {**graph.serving_sizes, graph.batch_axis: MAX_BATCH}
    options = {
        "trt_profile_min_shapes": _shapes(graph, smallest),
        "trt_profile_opt_shapes": _shapes(graph, graph.serving_sizes),
        "trt_profile_max_shapes": _shapes(graph, largest),
    }
    if precision != "fp32":  # the file's types are allowed; TensorRT then need not compute in them everywhere
        options[f"trt_{precision}_enable"] = "1"
    return options


def _shapes(graph: GraphSpec, sizes: Mapping[str, int]) -> str:
    """Shapes of all inputs as the provider takes them: `latents:2x4x16x8x8,timesteps:2`."""
    inputs = (
        f"{tensor.name}:{'x'.join(str(axis if isinstance(axis, int) else sizes[axis]) for axis in tensor.axes)}"
        for tensor in graph.inputs
    )
    return ",".join(inputs)
