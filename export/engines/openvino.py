"""OpenVINO reads the float32 ONNX file; what is added is the graph's signature."""

from pathlib import Path

import torch
from openvino import Core

from diffsplat.backends.openvino import missing_precision
from export.common import ExportError
from export.engines.job import BuildJob
from export.engines.signature import graph_signature


def build(job: BuildJob) -> list[Path]:
    """Link the ONNX file and write the signature; OpenVINO casts the weights when it compiles.

    Raises:
        ExportError: OpenVINO does not know an operator of the graph, or this CPU lacks the precision.
    """
    graph, precision = job.graph, job.precision
    if reason := missing_precision(precision):
        raise ExportError(f"graph {graph.name!r}: {reason}")
    types = {parameter.dtype for parameter in job.module.parameters()}
    assert precision == "fp32" or torch.float32 not in types, "OpenVINO has one precision for a whole graph"
    files = job.link_onnx("fp32")
    try:
        Core().read_model(files[0])
    except RuntimeError as error:
        raise ExportError(f"graph {graph.name!r}: openvino cannot read it: {error}") from None
    return [*files, graph_signature(graph).write(job.folder)]
