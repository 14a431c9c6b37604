"""The one way from device to device: every stage moves its tensors here, once per request and never inside a step.

Tests replace `copy` and `rows_where`, which stand for all transfers and all shapes that depend on values, and count.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffsplat.graph import Graph

HOST = torch.device("cpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The same numbers on `device`; the tensor itself if it lies there already."""
    lies_there = tensor.device == device or (tensor.device.type == device.type and device.index is None)
    return tensor if lies_there else copy(tensor, device)


def copy(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on another device.

    One from the host goes through pinned memory, so that the host does not wait for the work queued on the device; one
    to the host waits until the numbers have been computed.
    """
    if tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in the host's memory; the host waits for it."""
    return to_device(tensor, HOST)


def call_from_host(graph: "Graph", *inputs: Tensor) -> Any:
    """Run a graph that is called once per request on tensors of the host; its outputs come back there."""
    outputs = graph(*(to_device(tensor, graph.device) for tensor in inputs))
    return to_host(outputs) if isinstance(outputs, Tensor) else tuple(map(to_host, outputs))


def rows_where(values: Tensor, keep: Tensor) -> Tensor:
    """The rows of `values` [N, ...] where `keep` [N] is True; the host waits until their number is known."""
    return values[keep]
