"""A torch module -> a checked ONNX file.

This uses torch's tracing exporter (`dynamo=False`): its results equal the newer exporter's (<= 2e-6), and it took
2.4 s instead of 37 s for a tiny UNet. It is deprecated since torch 2.9, but exists up to 2.13. It warns of every Python
number that it takes as a constant; comparing at other batch sizes than the traced one (`parity`) covers that risk.
"""

import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from diffsplat.backends.onnx_runtime import OnnxGraph
from diffsplat.graph import Graph
from export.common import ExportError
from export.graph_spec import GraphSpec

OPSET = 18
TRACED_ROWS = 2
PARITY_LIMIT = 1e-4
SINGLE_FILE_BYTES = 1_500_000_000  # protobuf is limited to 2 GiB


def write_onnx(
    graph: GraphSpec, module: nn.Module, path: Path, single_file_bytes: int = SINGLE_FILE_BYTES
) -> list[Path]:
    """Trace `module`, name its axes, check the file.

    Args:
        graph: names, axes and sample inputs.
        module: what to trace.
        path: the `.onnx` file to write.
        single_file_bytes: larger weights go into `<path>.data` beside the file.

    Returns:
        The files written, `path` first.
    """
    inputs = graph.sample_inputs({**graph.serving_sizes, graph.batch_axis: TRACED_ROWS})
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        traced = Path(temporary) / path.name  # tracing writes one file per weight for a big model
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                inputs,
                str(traced),
                input_names=[tensor.name for tensor in graph.inputs],
                output_names=[tensor.name for tensor in graph.outputs],
                dynamic_axes=graph.free_axes,
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load(str(traced))
    # tracing loses the fixed sizes of outputs, from which the runtime allocates them
    for traced_output, output in zip(model.graph.output, graph.outputs, strict=True):
        for dim, axis in zip(traced_output.type.tensor_type.shape.dim, output.axes, strict=True):
            dim.Clear()
            if isinstance(axis, str):
                dim.dim_param = axis
            else:
                dim.dim_value = axis
    data = path.with_name(path.name + ".data")
    apart = sum(parameter.nbytes for parameter in module.parameters()) > single_file_bytes
    onnx.save(model, str(path), save_as_external_data=apart, location=data.name)
    onnx.checker.check_model(str(path), full_check=True)
    return [path, data] if apart else [path]


def parity(graph: GraphSpec, module: nn.Module, path: Path, threads: int) -> float:
    """Largest relative error of the exported graph at batch sizes and token counts that were not traced.

    Raises:
        ExportError: it exceeds `PARITY_LIMIT`, or the graph does not run at one of the sizes.
    """
    exported = OnnxGraph(graph.name, path, threads)
    worst = 0.0
    for seed, sizes in enumerate(graph.parity_sizes):
        error = relative_error(exported, module, graph, sizes, seed)
        if not error <= PARITY_LIMIT:  # catches NaN too
            raise ExportError(
                f"graph {graph.name!r} differs from torch by {error:.1e} of its largest value at {sizes}, "
                f"allowed is {PARITY_LIMIT:.0e}"
            )
        worst = max(worst, error)
    return worst


def relative_error(exported: Graph, module: nn.Module, graph: GraphSpec, sizes: dict[str, int], seed: int) -> float:
    """Largest |exported - torch| / largest |torch| on sample inputs; 0 if both are zero, as for a new ControlNet."""
    inputs = graph.sample_inputs(sizes, seed)
    with torch.no_grad():
        expected = module(*inputs)
    try:
        actual = exported(*inputs)
    except (ValueError, RuntimeError) as failure:
        raise ExportError(f"graph {graph.name!r} does not run at {sizes}: {failure}") from None
    errors = []
    for mine, right in zip(_outputs(actual), _outputs(expected), strict=True):
        error = (mine - right).abs().max()
        errors.append(error if error == 0 else error / right.abs().max())
    return float(torch.stack(errors).max())  # NaN if any error is NaN


def _outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result
