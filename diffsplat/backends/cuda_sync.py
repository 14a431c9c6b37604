"""How far the host may run ahead of a CUDA device, and a watch for places where it waits without being asked to."""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch

STEPS_AHEAD = 1  # queued behind the one that the device computes: it never idles, and requests still join at once

SyncDebug = Literal["default", "warn", "error"]  # torch's own names


class Pace:
    """Keeps the host at most `STEPS_AHEAD` steps ahead of the device; does nothing on the CPU.

    A step only queues its work. Without a limit all steps of a request would be queued at once, so that none could be
    stopped and no other request could join.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._queued: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Before a step: until few enough steps are queued."""
        while len(self._queued) > STEPS_AHEAD:
            self._queued.popleft().synchronize()

    def mark(self) -> None:
        """After a step was queued."""
        if self._device is not None:
            event = torch.cuda.Event(blocking=True)  # the core is free while the host waits
            event.record(torch.cuda.current_stream(self._device))
            self._queued.append(event)


def read_sync_debug(parameters: Mapping[str, str]) -> SyncDebug:
    """The parameter `sync_debug` of a model; "default" where there is none. ValueError names what is allowed."""
    given = parameters.get("sync_debug", "default")
    for mode in get_args(SyncDebug):
        if given == mode:
            return mode  # type: ignore[no-any-return]
    raise ValueError(f"parameter sync_debug = {given!r}: must be one of {', '.join(get_args(SyncDebug))}")


@contextmanager
def watch_for_waiting(mode: SyncDebug, device: torch.device) -> Iterator[None]:
    """Let torch warn, or raise, where the host waits for a CUDA device inside the block; "default" changes nothing."""
    if mode == "default" or device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
