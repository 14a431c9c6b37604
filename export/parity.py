"""A graph run by a back end against the same graph run by torch in float32 on the CPU."""

from typing import Any

import torch
from torch import Tensor, nn

from diffsplat.graph import Graph, Precision
from export.common import ExportError
from export.graph_spec import GraphSpec

# largest error / largest value; bf16 keeps 8 bits of a number, fp16 11, and errors add up over the layers
LIMITS: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.03}


class Reference:
    """What torch gives in float32, at batch sizes and token counts that are not those of an export's tracing.

    Args:
        graph: names the sizes, and makes the inputs.
        module: the graph's module in float32 on the CPU.
    """

    def __init__(self, graph: GraphSpec, module: nn.Module) -> None:
        self.graph = graph
        self._cases = []
        for seed, sizes in enumerate(graph.parity_sizes):
            inputs = graph.sample_inputs(sizes, seed)
            with torch.no_grad():
                self._cases.append((sizes, inputs, module(*inputs)))

    def compare(self, exported: Graph) -> float:
        """Largest relative error of a loaded graph.

        Raises:
            ExportError: it exceeds the limit of the graph's precision, or the graph does not run at one of the sizes.
        """
        limit, worst = LIMITS[exported.precision], 0.0
        for sizes, inputs, expected in self._cases:
            try:
                actual = exported(*(value.to(exported.device) for value in inputs))
            except (ValueError, RuntimeError) as failure:
                raise ExportError(f"graph {self.graph.name!r} does not run at {sizes}: {failure}") from None
            error = relative_error(actual, expected)
            if not error <= limit:  # catches NaN too
                raise ExportError(
                    f"graph {self.graph.name!r} differs from torch by {error:.1e} of its largest value at {sizes}, "
                    f"allowed is {limit:.0e}"
                )
            worst = max(worst, error)
        return worst


def relative_error(actual: Any, expected: Any) -> float:
    """Largest |actual - expected| / largest |expected| of a tensor, or of the worst of several; 0 if both are zero."""
    errors = []
    for mine, right in zip(_outputs(actual), _outputs(expected), strict=True):
        error = (mine.to(right.device) - right).abs().max()
        errors.append(error if error == 0 else error / right.abs().max())  # both are zero for a new ControlNet
    return float(torch.stack(errors).max())  # NaN if any error is NaN


def _outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result
