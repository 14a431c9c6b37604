"""Time and memory of calls on a device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

MIN_CALLS, MAX_CALLS, WARM_UP_CALLS = 5, 50, 2


def wait_for(device: torch.device) -> None:
    """Until the device has done what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_of(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Median milliseconds of a call, from the host's start to the device's end; repeated for about `seconds`."""
    for _ in range(WARM_UP_CALLS):
        call()
    wait_for(device)
    milliseconds: list[float] = []
    started = time.perf_counter()
    while len(milliseconds) < MIN_CALLS or (len(milliseconds) < MAX_CALLS and time.perf_counter() - started < seconds):
        before = time.perf_counter()
        call()
        wait_for(device)
        milliseconds.append((time.perf_counter() - before) * 1e3)
    return statistics.median(milliseconds)


def forget_peak(device: torch.device) -> None:
    """Count the peak of memory from here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Most that was allocated on the device since then; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
