"""ONNX Runtime's providers: which there are, and how a graph on a GPU uses them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime

if TYPE_CHECKING:
    import torch

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
Provider = tuple[str, Mapping[str, str]]  # name and options


def missing_provider(device: str) -> str | None:
    """Why ONNX Runtime cannot run on a type of device here; None if it can."""
    found = onnxruntime.get_available_providers()
    if device == "cpu" or CUDA in found:
        return None
    return (
        f"this onnxruntime has no {CUDA}, only {', '.join(found)}: pip uninstall onnxruntime, then "
        "pip install 'diffsplat-triton[onnxruntime-gpu]', which brings the same package with GPU providers"
    )


def on_stream(providers: Sequence[Provider], device: "torch.device", stream: "torch.cuda.Stream") -> list[Provider]:
    """GPU providers with their options for a device and a stream."""
    place = {
        "device_id": str(device.index),
        "has_user_compute_stream": "1",
        "user_compute_stream": str(stream.cuda_stream),
    }
    return [(name, {**options, **place}) for name, options in providers]


def provider_path(folder: Path, graph: str) -> Path:
    """Where an export writes the provider of a graph down."""
    return folder / f"{graph}.provider.json"


def write_provider(folder: Path, graph: str, provider: Provider) -> Path:
    """Write a provider down; returns the file."""
    path = provider_path(folder, graph)
    path.write_text(json.dumps({"provider": provider[0], "options": provider[1]}, indent=2) + "\n", encoding="utf-8")
    return path


def read_provider(folder: Path, graph: str) -> Provider:
    """Read it. Engines that the export built lie in the same folder."""
    values = json.loads(provider_path(folder, graph).read_text(encoding="utf-8"))
    name, options = str(values["provider"]), dict(values["options"])
    if name == TENSORRT:
        options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
    return name, options
