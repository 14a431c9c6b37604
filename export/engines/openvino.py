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
        ExportError: OpenVINO does not know an operator of the graph, this CPU lacks the precision, or some layers of
            the graph must stay in float32: OpenVINO has one precision for a whole graph.
    """
    graph, precision = job.graph, job.precision
    if reason := missing_precision(precision):
        raise ExportError(f"graph {graph.name!r}: {reason}")
    types = {parameter.dtype for parameter in job.module.parameters()}
    if precision != "fp32" and torch.float32 in types:
        raise ExportError(
            f"graph {graph.name!r}: openvino has one precision for a whole graph, and layers of this one stay in fp32"
        )
    files = job.link_onnx("fp32")
    try:
        Core().read_model(files[0])
    except RuntimeError as error:
        raise ExportError(f"graph {graph.name!r}: openvino cannot read it: {error}") from None
    return [*files, graph_signature(graph).write(job.folder)]
