"""CUDA graphs of the graphs that run at every step: recorded once for each shape of the inputs, then replayed.

A step of SD1.5 launches a thousand kernels; on a fast card launching them takes longer than they do.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffsplat.graph import Backend, Graph

WARM_UP_CALLS = 3  # before recording: libraries choose their kernels and allocate workspaces at the first calls

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: Any


class ReplayedGraph:
    """A torch graph on CUDA, replayed from recordings.

    A new shape is recorded when it is first seen, which makes the host wait; a stage shows every shape while it warms
    up. Outputs are valid until the next call. Recordings share their memory, so one must not run beside another.
    """

    def __init__(self, graph: Graph, pool: Any) -> None:
        """`pool`: of `torch.cuda.graph_pool_handle`, shared by graphs that run one after the other."""
        self.graph = graph
        self._pool = pool
        self._recordings: dict[tuple[torch.Size, ...], _Recording] = {}

    @property
    def name(self) -> str:
        """Of the graph."""
        return self.graph.name

    @property
    def backend(self) -> Backend:
        """Of the graph."""
        return self.graph.backend

    @property
    def device(self) -> torch.device:
        """Of the graph."""
        return self.graph.device

    @property
    def precision(self) -> Any:
        """Of the graph."""
        return self.graph.precision

    def __call__(self, *inputs: Tensor) -> Any:
        """As the graph itself."""
        key = tuple(tensor.shape for tensor in inputs)
        recording = self._recordings.get(key)
        if recording is None:
            recording = self._recordings[key] = self._record(inputs)
        for static, given in zip(recording.inputs, inputs, strict=True):
            static.copy_(given)
        recording.graph.replay()
        return recording.outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording:
        _log.info("graph %s: recording a CUDA graph for %s", self.name, [list(tensor.shape) for tensor in inputs])
        static = tuple(tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in inputs)
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()  # recording needs a stream of its own, and so do the calls before it
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_CALLS):
                    self.graph(*static)
            torch.cuda.current_stream().wait_stream(side)
            recorded = torch.cuda.CUDAGraph()
            # thread_local: threads of other libraries in this process may use CUDA meanwhile
            with torch.cuda.graph(recorded, pool=self._pool, capture_error_mode="thread_local"):
                outputs = self.graph(*static)
        return _Recording(recorded, static, outputs)


def replayed(graphs: Mapping[str, Graph], names: tuple[str, ...]) -> dict[str, Graph]:
    """`graphs`, with those of `names` that eager torch runs on CUDA replayed from recordings."""
    fit = [name for name in names if graphs[name].backend == "torch" and graphs[name].device.type == "cuda"]
    pool = torch.cuda.graph_pool_handle() if fit else None
    return {name: ReplayedGraph(graph, pool) if name in fit else graph for name, graph in graphs.items()}
