"""Back ends: each runs a `graph.Graph`; its module is imported only when chosen.

A module of a back end has `load(name, folder, record, threads, device) -> Graph`: the graph `name` of a version folder,
from the files of its `GraphRecord`. Eager torch has none, since its graphs share networks: see `runtime.load_graphs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec

from diffsplat.graph import Backend, DeviceType, Precision

OPENVINO_CACHE_VARIABLE = "DIFFSPLAT_OPENVINO_CACHE"  # a folder for what OpenVINO compiled; not set: nothing is kept


@dataclass(frozen=True)
class BackendInfo:
    """Where a back end is, what it needs, and what it can do."""

    module: str  # has `load`
    precisions: Mapping[DeviceType, tuple[Precision, ...]]  # device types that it runs on -> what it computes in there
    packages: tuple[str, ...] = ()  # that must be importable: any one of them is enough
    extras: Mapping[DeviceType, str] = field(default_factory=dict)  # of pyproject, which install them
    # device type -> "module:function", DeviceType -> why it does not work here all the same, or None
    checks: Mapping[DeviceType, str] = field(default_factory=dict)
    compiles_shapes: bool = False  # the first call with another batch takes seconds
    mixes_precisions: bool = True  # some layers of a graph may stay in float32; otherwise all of it does
    quick: bool = True  # builds within seconds, so that an export tries it unasked


BACKENDS: dict[Backend, BackendInfo] = {
    "torch": BackendInfo(
        module="diffsplat.backends.eager",
        precisions={"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "bf16", "fp16")},
    ),
    "onnxruntime": BackendInfo(
        module="diffsplat.backends.onnx_runtime",
        precisions={"cpu": ("fp32",), "cuda": ("fp32", "bf16", "fp16")},
        packages=("onnxruntime",),
        extras={"cuda": "onnxruntime-gpu"},
        checks={"cuda": "diffsplat.backends.onnx_providers:missing_provider"},
    ),
    "openvino": BackendInfo(
        module="diffsplat.backends.openvino",
        precisions={"cpu": ("fp32", "bf16", "fp16")},
        packages=("openvino",),
        extras={"cpu": "openvino"},
        compiles_shapes=True,
        mixes_precisions=False,
    ),
    "tensorrt": BackendInfo(
        module="diffsplat.backends.tensorrt",
        precisions={"cuda": ("fp32", "bf16", "fp16")},
        packages=("tensorrt", "tensorrt_rtx"),
        extras={"cuda": "tensorrt"},
        checks={"cuda": "diffsplat.backends.tensorrt:check"},
    ),
    "aotinductor": BackendInfo(
        module="diffsplat.backends.aotinductor",
        precisions={"cpu": ("fp32", "bf16", "fp16"), "cuda": ("fp32", "bf16", "fp16")},
        quick=False,  # minutes for a UNet
    ),
}


def unavailable(backend: Backend, device: DeviceType, precision: Precision = "fp32") -> str | None:
    """Why a back end cannot run graphs on this kind of device here; None if it can. Names the extra to install."""
    info = BACKENDS[backend]
    if device not in info.precisions:
        return f"{backend} does not run on {device}, only on {', '.join(info.precisions)}"
    if precision not in info.precisions[device]:
        return f"{backend} has no {precision} on {device}, only {', '.join(info.precisions[device])}"
    if info.packages and not any(find_spec(package) for package in info.packages):
        extra = info.extras.get(device)
        fix = f"pip install 'diffsplat-triton[{extra}]'" if extra else f"pip install {info.packages[0]}"
        return f"{' or '.join(info.packages)} is not installed: {fix}"
    if device in info.checks:
        module, function = info.checks[device].split(":")
        return getattr(import_module(module), function)(device)  # type: ignore[no-any-return]
    return None
