"""The interface through which a stage calls an exported network, whichever back end runs it."""

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # `package` reads records of graphs and starts without torch
    import torch
    from torch import Tensor

Backend = Literal["torch", "aotinductor", "onnxruntime", "openvino", "tensorrt"]
Precision = Literal["fp32", "bf16", "fp16"]
DeviceType = Literal["cpu", "cuda"]


class Graph(Protocol):
    """One loaded graph."""

    @property
    def name(self) -> str:
        """Its name in `networks.graph_modules`."""

    @property
    def backend(self) -> Backend:
        """The back end that runs it."""

    @property
    def device(self) -> "torch.device":
        """Where its inputs must lie, and where its outputs do."""

    @property
    def precision(self) -> Precision:
        """The type it computes in."""

    def __call__(self, *inputs: "Tensor") -> Any:
        """Run on positional inputs, in the order of `export/graphs.py`; returns a tensor, or a tuple of several.

        Inputs are float32 (token ids and their masks int64), outputs float32, whatever the precision. Both lie on
        `device`: a call never moves data between devices, so that its caller does that once per request.
        """
