"""Time back ends by the median of interleaved calls, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from diffsplat.graph import Backend, Graph

CLEARLY_FASTER = 0.9  # torch must take less than this fraction of ONNX Runtime's time, because its idle threads spin
Key = TypeVar("Key")
MIN_ROUNDS = 5
MAX_ROUNDS = 25
SECONDS = 1.0  # per graph, after at least MIN_ROUNDS


def median_ms(graphs: Mapping[Key, Graph], inputs: tuple[Tensor, ...], threads: int) -> dict[Key, float]:
    """Median milliseconds of a call per graph, after one warm-up call each, torch on `threads` threads."""
    before_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _median_ms(graphs, inputs)
    finally:
        torch.set_num_threads(before_threads)


def choose_backend(ms: Mapping[Backend, float]) -> Backend:
    """The faster back end; ONNX Runtime unless torch is clearly faster."""
    return "torch" if ms["torch"] < CLEARLY_FASTER * ms["onnxruntime"] else "onnxruntime"


def _median_ms(graphs: Mapping[Key, Graph], inputs: tuple[Tensor, ...]) -> dict[Key, float]:
    for graph in graphs.values():
        graph(*inputs)
    milliseconds: dict[Key, list[float]] = {key: [] for key in graphs}
    start = time.perf_counter()
    for rounds in range(MAX_ROUNDS):
        if rounds >= MIN_ROUNDS and time.perf_counter() - start > SECONDS:
            break
        for key, graph in graphs.items():
            before = time.perf_counter()
            graph(*inputs)
            milliseconds[key].append((time.perf_counter() - before) * 1e3)
    return {key: statistics.median(values) for key, values in milliseconds.items()}
