"""The interface through which a stage calls an exported network, whichever back end runs it."""

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # `package` reads records of graphs and starts without torch
    from torch import Tensor

Backend = Literal["onnxruntime", "torch"]


class Graph(Protocol):
    """One loaded graph."""

    @property
    def name(self) -> str:
        """Its name in `networks.graph_modules`."""

    @property
    def backend(self) -> Backend:
        """The back end that runs it."""

    def __call__(self, *inputs: "Tensor") -> Any:
        """Run on positional inputs, in the order of `export/graphs.py`; returns a tensor, or a tuple of several."""
