"""What every exported network looks like to a stage, whichever back end runs it."""

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # `package` reads records of graphs and starts without torch
    from torch import Tensor

Backend = Literal["onnxruntime", "torch"]


class Graph(Protocol):
    """One network of a stage, ready to run."""

    @property
    def name(self) -> str:
        """Its name in `networks.graph_modules`."""

    @property
    def backend(self) -> Backend:
        """What runs it."""

    def __call__(self, *inputs: "Tensor") -> Any:
        """Inputs by position, as the table in `export/graphs.py` lists them -> its output, or a tuple of several."""
