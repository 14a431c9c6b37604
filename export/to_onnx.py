"""A torch module -> a checked ONNX file.

This uses torch's tracing exporter (`dynamo=False`): its results equal the newer exporter's (<= 2e-6), and it took
2.4 s instead of 37 s for a tiny UNet. It is deprecated since torch 2.9, but exists up to 2.13. It warns of every Python
number that it takes as a constant; comparing at other batch sizes than the traced one (`parity.py`) covers that risk.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.onnx import symbolic_helper, symbolic_opset14

from export.graph_spec import GraphSpec

OPSET = 18
TRACED_ROWS = 2
BF16_OPSET, BF16_IR = 22, 10  # convolutions take bfloat16 from here on; what tracing writes did not change otherwise
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
    is_bf16 = any(parameter.dtype == torch.bfloat16 for parameter in module.parameters())
    if is_bf16:
        model.opset_import[0].version, model.ir_version = BF16_OPSET, BF16_IR
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
    onnx.checker.check_model(str(path), full_check=not is_bf16)  # ONNX has no bfloat16 for Einsum, TensorRT has
    return [path, data] if apart else [path]


@symbolic_helper.parse_args("v", "v", "v", "v", "f", "b", "v", "b")  # type: ignore[untyped-decorator]
def _attention(
    g: Any, query: Any, key: Any, value: Any, mask: Any, dropout: float, is_causal: bool, scale: Any, gqa: bool
) -> Any:
    """Torch's own, but with a given scale in bf16: there torch 2.13 cannot export the product of the two types."""
    number = symbolic_helper._maybe_get_const(scale, "f")
    if isinstance(number, float) and query.type().scalarType() == "BFloat16":
        scale = g.op("Constant", value_t=torch.tensor(number, dtype=torch.bfloat16))
    attention = symbolic_opset14.scaled_dot_product_attention
    return attention(g, query, key, value, mask, dropout, is_causal, scale, gqa)


torch.onnx.register_custom_op_symbolic("aten::scaled_dot_product_attention", _attention, OPSET)
