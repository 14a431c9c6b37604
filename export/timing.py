"""Time back ends by the median of interleaved calls, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from diffsplat.export_record import Candidate
from diffsplat.graph import Graph

# On a CPU another back end must take less than this fraction of ONNX Runtime's time: idle threads of torch spin, and a
# choice should not change with the noise of a measurement. For the same reason bf16 must beat fp32 by as much.
CLEARLY_FASTER = 0.9
Key = TypeVar("Key")
MIN_ROUNDS = 5
MAX_ROUNDS = 25
SECONDS = 1.0  # per graph, after at least MIN_ROUNDS
FAIR_ROUNDS, HOPELESS = 2, 3.0  # after so many rounds, those that take so many times the fastest are left out


def median_ms(graphs: Mapping[Key, Graph], inputs: tuple[Tensor, ...], threads: int) -> dict[Key, float]:
    """Median milliseconds of a call per graph, after one warm-up call each, torch on `threads` threads.

    Those that are several times slower than the fastest are called only twice: a step of a large network takes seconds.
    """
    before_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _median_ms(graphs, inputs)
    finally:
        torch.set_num_threads(before_threads)


def choose(candidates: Sequence[Candidate]) -> Candidate:
    """The fastest of the timed candidates; ONNX Runtime on a CPU, and fp32, unless another is clearly faster."""

    def cost(candidate: Candidate) -> float:
        assert candidate.ms is not None
        favoured = (candidate.backend == "onnxruntime" and candidate.device == "cpu", candidate.precision == "fp32")
        return candidate.ms * CLEARLY_FASTER ** sum(favoured)

    return min(candidates, key=cost)


def _median_ms(graphs: Mapping[Key, Graph], inputs: tuple[Tensor, ...]) -> dict[Key, float]:
    placed = {key: tuple(value.to(graph.device) for value in inputs) for key, graph in graphs.items()}
    for key, graph in graphs.items():
        graph(*placed[key])
    milliseconds: dict[Key, list[float]] = {key: [] for key in graphs}
    start = time.perf_counter()
    for rounds in range(MAX_ROUNDS):
        if rounds >= MIN_ROUNDS and time.perf_counter() - start > SECONDS:
            break
        best = {key: min(values, default=0.0) for key, values in milliseconds.items()}
        for key, graph in graphs.items():
            if rounds >= FAIR_ROUNDS and best[key] > HOPELESS * min(best.values()):
                continue
            before = time.perf_counter()
            graph(*placed[key])
            if graph.device.type == "cuda":
                torch.cuda.synchronize(graph.device)
            milliseconds[key].append((time.perf_counter() - before) * 1e3)
    return {key: statistics.median(values) for key, values in milliseconds.items()}
