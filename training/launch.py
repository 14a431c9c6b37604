"""Device, processes and precision of a run, by accelerate.

``accelerate launch -m training PRESET`` starts one process per device, on one machine or on many; without it there is
one process. On CPUs several processes are started by ``torchrun -m training PRESET``. The loader is our own and is not
given to accelerate.
"""

import datetime
import importlib.util
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    AutocastKwargs,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
)

from training.config.common import StageConfig, to_plain

_Made = TypeVar("_Made")
_MIXED_PRECISION = {"none": "no", "bf16": "bf16", "fp16": "fp16"}
_LONGEST_WAIT = datetime.timedelta(hours=12)  # for a process that prepares data for all
_REPLICATED = (
    DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_MLU,
    DistributedType.MULTI_MUSA, DistributedType.MULTI_NPU, DistributedType.MULTI_XPU, DistributedType.MULTI_HPU,
    DistributedType.MULTI_SDAA, DistributedType.MULTI_NEURON,
)  # fmt: skip


def open_accelerator(config: StageConfig) -> Accelerator:
    """The accelerator of one run of a stage; several may follow each other in a process.

    Raises:
        ValueError: `run.device`, `optim.precision`, `run.tracker` or accelerate's own configuration cannot be met.
    """
    device = check_device(config.run.device)
    precision = config.optim.precision
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("optim.precision = 'fp16' needs a GPU: a CPU has 'bf16' and 'none'")
    tracker = None if config.run.tracker == "none" else config.run.tracker
    if tracker is not None and importlib.util.find_spec(tracker) is None:
        raise ValueError(f"run.tracker = {tracker!r}: the package {tracker} is not installed: pip install {tracker}")
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=_MIXED_PRECISION[precision],
        gradient_accumulation_steps=config.optim.accumulation,
        step_scheduler_with_optimizer=False,
        log_with=tracker,
        project_dir=config.run.out,
        kwargs_handlers=[
            AutocastKwargs(enabled=False),  # a stage chooses what runs in low precision; geometry never does
            DistributedDataParallelKwargs(find_unused_parameters=config.unused_parameters),
            InitProcessGroupKwargs(timeout=_LONGEST_WAIT),
        ],
    )
    if accelerator.distributed_type not in _REPLICATED:
        raise ValueError(
            f"accelerate's configuration asks for {accelerator.distributed_type.value}: weights of a run are whole on "
            "every process; choose multi-GPU or multi-CPU (`accelerate config`)"
        )
    return accelerator


def check_device(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"run.device = {name!r} is not a device of torch, such as cpu, cuda, cuda:1, mps") from None
    if device.type != "cpu":
        found = torch.accelerator.current_accelerator(check_available=True)
        count = torch.accelerator.device_count() if found is not None and found.type == device.type else 0
        if (device.index or 0) >= count:
            there = "only cpu" if found is None else f"{torch.accelerator.device_count()} x {found.type}"
            raise ValueError(f"run.device = {name!r}: torch {torch.__version__} finds {there} on this machine")
    return device


def is_main_process() -> bool:
    """Whether this process is the first of those that were started together."""
    return bool(PartialState().is_main_process)


def by_main_process(act: Callable[[], _Made]) -> _Made | None:
    """Let the main process act while the others wait for it; what it made, in the others None."""
    try:
        return act() if is_main_process() else None
    finally:
        PartialState().wait_for_everyone()


def start_tracker(accelerator: Accelerator, config: StageConfig) -> None:
    """Open the tracker that the run asks for, if any, with the run's configuration."""
    if config.run.tracker != "none":
        name = config.preset or config.run.out.name
        accelerator.init_trackers(
            "diffsplat",
            config=dict(flatten(to_plain(config))),
            init_kwargs={"wandb": {"name": name, "dir": str(config.run.out)}, "trackio": {"name": name}},
        )


def flatten(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested names joined by dots; lists as text, which every tracker takes."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def close_processes() -> None:
    """Take leave of the other processes, at the end of a program."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
