"""The signature of a graph, from its specification."""

from collections.abc import Mapping

from diffsplat.backends.signature import Signature, TensorSignature
from export.graph_spec import GraphSpec


def graph_signature(graph: GraphSpec, largest: Mapping[str, int] | None = None) -> Signature:
    """Names, types and axes that the back ends' loaders check, and sizes of free axes that the file limits."""
    inputs = [
        TensorSignature(tensor.name, "int64" if tensor.sample in ("token", "mask") else "float32", tensor.axes)
        for tensor in graph.inputs
    ]
    outputs = [TensorSignature(tensor.name, "float32", tensor.axes) for tensor in graph.outputs]
    return Signature(graph.name, tuple(inputs), tuple(outputs), largest or {})
