"""What is measured on: the first row of the results, and the first that fails if there is no such device."""

import torch

from benchmarks.gpu.runner import Task
from benchmarks.machine import describe_machine
from diffsplat.backends import BACKENDS, unavailable
from diffsplat.backends.devices import device_type, find_device


def describe(task: Task) -> None:
    """The device, the CPU beside it, versions, and which back ends there are."""
    device = find_device(task.settings.device)
    machine = describe_machine()
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    task.log.add(what="device", value=device_name(device))
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        gigabytes = torch.cuda.get_device_properties(device).total_memory / 2**30
        task.log.add(
            what="card", value=f"compute capability {capability}, {gigabytes:.0f} GiB, CUDA {torch.version.cuda}"
        )
    task.log.add(what="cpu", value=f"{machine['cpu']}, {machine['cores']} cores")
    task.log.add(what="versions", value=f"Python {machine['python']}, {versions}")
    for backend in BACKENDS:
        reason = unavailable(backend, device_type(task.settings.device))
        task.log.add(what=f"back end {backend}", value=reason or "is here")
    if task.settings.tiny:
        task.log.add(what="networks", value="tiny: the figures mean nothing")


def device_name(device: torch.device) -> str:
    """The card's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
