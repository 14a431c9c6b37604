"""Which devices there are and what they can do: the only place that asks CUDA. Imports torch when asked."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class DeviceFacts:
    """A device, as it is now."""

    device: str  # "cpu" or "cuda:N"
    free_bytes: int  # of its memory
    card: str = ""  # the rest for CUDA alone: name of the card,
    uuid: str = ""  # by which processes that see other cards as cuda:0 know it,
    capability: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.device} ({self.card})" if self.card else self.device


def inspect(text: str) -> DeviceFacts:
    """The facts about a device. Makes a CUDA context: a launcher calls `inspect_apart`.

    Raises:
        DeviceError: as `find_device`.
    """
    if device_type(text) == "cpu":  # without torch, which takes seconds to import
        return DeviceFacts("cpu", host_free_bytes())
    device = find_device(text)
    card, uuid = cuda_identity(device.index)
    return DeviceFacts(str(device), cuda_free_bytes(device.index), card, uuid, cuda_capability(device.index))


def inspect_apart(text: str) -> DeviceFacts:
    """As `inspect`, for CUDA in a process of its own: a context takes memory of the card until it ends."""
    if device_type(text) == "cpu":
        return inspect(text)
    program = "import sys; from diffsplat.backends.devices import report; report(sys.argv[1])"
    answer = subprocess.run([sys.executable, "-c", program, text], capture_output=True, text=True)
    if answer.returncode:
        raise DeviceError(f"device {text!r} cannot be asked:\n{answer.stderr}")
    facts = json.loads(answer.stdout)
    if "error" in facts:
        raise DeviceError(facts["error"])
    return DeviceFacts(**{**facts, "capability": tuple(facts["capability"])})


def report(text: str) -> None:
    """Print the facts about a device, or why there are none, as JSON."""
    try:
        print(json.dumps(asdict(inspect(text))))
    except DeviceError as error:
        print(json.dumps({"error": str(error)}))


def check_precision(facts: DeviceFacts, precision: Precision) -> None:
    """Raise DeviceError if a device lacks a precision."""
    if facts.capability is None or precision != "bf16" or facts.capability >= BF16_CAPABILITY:
        return
    has, wanted = (".".join(map(str, pair)) for pair in (facts.capability, BF16_CAPABILITY))
    raise DeviceError(
        f"precision bf16: {facts} has compute capability {has}, bf16 needs {wanted} or newer; use fp16 or fp32"
    )


def check_memory(facts: DeviceFacts, needed_bytes: float, what: str) -> None:
    """Raise DeviceError if a device has too little free memory for `what`."""
    if needed_bytes > facts.free_bytes:
        needed, free = (f"{size / 1e9:.2f} GB" for size in (needed_bytes, facts.free_bytes))
        raise DeviceError(f"{what} needs about {needed} of memory, and {facts} has {free} free")


def host_free_bytes() -> int:
    """Memory of this machine that processes can still get, within the limit of the control group."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        reclaimable = sum(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith(("inactive_file ", "active_file "))
        )
    except (OSError, ValueError):  # no such control group, or no limit
        return available
    return min(available, limit - used + reclaimable)


def cuda_count() -> int:
    """Number of CUDA devices that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cuda_capability(index: int) -> tuple[int, int]:
    """Compute capability of a card."""
    import torch

    return torch.cuda.get_device_capability(index)


def cuda_identity(index: int) -> tuple[str, str]:
    """Name and UUID of a card."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    return properties.name, str(properties.uuid)


def cuda_free_bytes(index: int) -> int:
    """Free memory of a card, whoever uses the rest."""
    import torch

    return torch.cuda.mem_get_info(index)[0]


def exact_float32() -> None:
    """Let fp32 mean fp32: cuDNN would use TF32, with 10 bits, for convolutions."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
