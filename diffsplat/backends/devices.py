"""Which devices there are and what they can do: the only place that asks CUDA. Imports torch when asked."""

import re
from typing import TYPE_CHECKING

from diffsplat.graph import DeviceType, Precision

if TYPE_CHECKING:
    import torch

BF16_CAPABILITY = (8, 0)  # older cards emulate it, slower than float32


class DeviceError(ValueError):
    """A device is not there, too small, or lacks a precision; the message says what there is and what to do."""


def device_type(text: str) -> DeviceType:
    """`cpu` of "cpu", `cuda` of "cuda" and "cuda:1". DeviceError for anything else; does not ask CUDA."""
    if text == "cpu":
        return "cpu"
    if re.fullmatch(r"cuda(:\d+)?", text):
        return "cuda"
    raise DeviceError(f"device {text!r}: must be cpu, cuda or cuda:N")


def find_device(text: str) -> "torch.device":
    """The device of this name, with its index; checks that it exists.

    Raises:
        DeviceError: the name is malformed, torch has no CUDA, or there is no such card.
    """
    import torch

    if device_type(text) == "cpu":
        return torch.device("cpu")
    index = int(text.partition(":")[2] or 0)
    count = cuda_count()
    if not count:
        why = "this torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
        raise DeviceError(f"device {text!r}: {why}; use cpu")
    if index >= count:
        raise DeviceError(f"device {text!r}: there are {count}, cuda:0 .. cuda:{count - 1}")
    return torch.device("cuda", index)


def check_precision(device: "torch.device", precision: Precision) -> None:
    """Raise DeviceError if the device lacks a precision."""
    if device.type != "cuda" or precision != "bf16":
        return
    capability = cuda_capability(device.index)
    if capability < BF16_CAPABILITY:
        has, wanted = (".".join(map(str, pair)) for pair in (capability, BF16_CAPABILITY))
        raise DeviceError(
            f"precision bf16: {device} has compute capability {has}, bf16 needs {wanted} or newer; use fp16 or fp32"
        )


def cuda_count() -> int:
    """Number of CUDA devices that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cuda_capability(index: int) -> tuple[int, int]:
    """Compute capability of a card."""
    import torch

    return torch.cuda.get_device_capability(index)
