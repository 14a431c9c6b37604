"""OpenVINO reads the float32 ONNX file; what is added is the graph's signature."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from openvino import Core
from torch import nn

from diffsplat.backends.openvino import missing_precision
from diffsplat.graph import Precision
from export.common import ExportError
from export.engines.signature import graph_signature
from export.graph_spec import GraphSpec


def build(
    graph: GraphSpec,
    module: nn.Module,
    folder: Path,
    precision: Precision,
    onnx: Callable[[Precision], list[Path]],
    device: torch.device,
) -> list[Path]:
    """Write the ONNX file and the signature into `folder`; OpenVINO casts the weights when it compiles.

    Raises:
        ExportError: OpenVINO does not know an operator of the graph, this CPU lacks the precision, or some layers of
            the graph must stay in float32: OpenVINO has one precision for a whole graph.
    """
    if reason := missing_precision(precision):
        raise ExportError(f"graph {graph.name!r}: {reason}")
    types = {parameter.dtype for parameter in module.parameters()}
    if precision != "fp32" and torch.float32 in types:
        raise ExportError(
            f"graph {graph.name!r}: openvino has one precision for a whole graph, and layers of this one stay in fp32"
        )
    files = []
    for path in onnx("fp32"):
        files.append(folder / path.name)
        os.link(path, files[-1])
    try:
        Core().read_model(files[0])
    except RuntimeError as error:
        raise ExportError(f"graph {graph.name!r}: openvino cannot read it: {error}") from None
    return [*files, graph_signature(graph).write(folder)]
