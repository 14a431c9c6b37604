"""The machine a figure was measured on, and the versions it was measured with."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "diffusers",
    "onnxruntime",
    "openvino",
    "tensorrt-rtx-cu13",
    "tritonclient",
    "nvidia-pytriton",
    "gsplat",
)


def machine_name() -> str:
    """Name of the GPU where there is one, else cores and instruction set of the CPU; fit for a folder."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        flags = _cpu_info("flags").split()
        width = "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else "sse"
        name = f"{platform.machine()}-{width}-{len(os.sched_getaffinity(0))}-cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe_machine() -> dict[str, Any]:
    """Machine and versions, written beside every figure."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": machine_name(),
        "cpu": _cpu_info("model name"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu_info(field: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "unknown")
