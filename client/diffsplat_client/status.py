"""Status: one STATUS message, as the denoiser writes it and the client reads it."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffsplat_client.contract import EARLY_END_STATES, EARLY_ENDS, ERROR_CODES
from diffsplat_client.errors import ServerError

PHASES = ("queued", "denoising", "finished", "ended")


@dataclass(frozen=True)
class EarlyEnd:
    """Why a request ended without a result."""

    state: str  # one of contract.EARLY_END_STATES
    error_type: str  # a key of contract.ERROR_CODES
    message: str


@dataclass(frozen=True)
class Status:
    """Where a request stands."""

    phase: str  # one of PHASES
    step: int  # denoising steps done
    steps: int
    queue_position: int  # 1: next; 0 once it runs
    seed: int
    elevation_deg: float
    seconds_left: float | None  # until its last step has ended, as the server expects
    warnings: tuple[str, ...] = ()
    index: int = 0  # which result of the request it is about
    results: int = 1  # of the request: its NUM_SEEDS
    previews: int = 0  # made so far; the last of them comes with the first message that counts it
    previews_skipped: int = 0  # that were due, and for which the server had no time
    seconds_to_start: float | None = None  # until its first step begins; None once it runs
    early_end: EarlyEnd | None = None  # set if and only if phase is "ended"


def parse_status(tensor: np.ndarray) -> Status:
    """Read STATUS [1]; ServerError when it is not what the contract says."""
    try:
        values: dict[str, Any] = json.loads(tensor.item())
        status = Status(
            phase=str(values["phase"]),
            step=int(values.get("step", 0)),
            steps=int(values["steps"]),
            queue_position=int(values.get("queue_position", 0)),
            seed=int(values["seed"]),
            elevation_deg=float(values["elevation_deg"]),
            seconds_left=_read_seconds(values.get("seconds_left")),
            seconds_to_start=_read_seconds(values.get("seconds_to_start")),
            warnings=tuple(str(warning) for warning in values.get("warnings", ())),
            index=int(values.get("index", 0)),
            results=int(values.get("results", 1)),
            previews=int(values.get("previews", 0)),
            previews_skipped=int(values.get("previews_skipped", 0)),
            early_end=_read_early_end(values) if values["phase"] == "ended" else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise ServerError("STATUS is not the JSON that the contract describes") from None
    if status.phase not in PHASES:
        raise ServerError(f"STATUS has phase {status.phase!r}: the contract knows {', '.join(PHASES)}")
    return status


def find_early_end(tensors: dict[str, np.ndarray]) -> EarlyEnd | None:
    """Why a later stage ended the request, if one did; ServerError when it is not what the contract says."""
    for spec in EARLY_ENDS:
        if spec.name in tensors:
            try:
                return _read_early_end(json.loads(tensors[spec.name].item()))
            except (ValueError, TypeError, KeyError, RecursionError):
                raise ServerError(f"{spec.name} is not the JSON that the contract describes") from None
    return None


def _read_seconds(value: Any) -> float | None:
    return None if value is None else float(value)


def _read_early_end(values: dict[str, Any]) -> EarlyEnd:
    end = EarlyEnd(values["end_state"], values["error_type"], str(values["message"]))
    if end.state not in EARLY_END_STATES or end.error_type not in ERROR_CODES:
        raise ValueError
    return end
