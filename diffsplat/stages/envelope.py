"""A request on its way through the stages: the REQUEST tensor."""

import dataclasses
import json
import math
import re
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from diffsplat_client.errors import InvalidRequestError, RequestTimeoutError
from diffsplat_client.output_options import OUTPUT_OPTIONS, OutputOptions
from diffsplat_client.request import MAX_NUM_SEEDS, GenerationRequest

MAX_CHARACTERS = 1_000_000  # of the JSON; the longest sensible one, 720 poses and two prompts, has a tenth
_MUST_BE_FILLED = ("elevation_deg", "distance", "seed", "steps", "scheduler", "eta", "guidance_scale")
_TICKET = re.compile(r"[0-9a-f]{16}\.[0-9a-f]{16}")
_Envelope = TypeVar("_Envelope", bound="OutputEnvelope")


class Deadlines(NamedTuple):
    """When a request is given up: seconds of `time.monotonic()`, a clock that the processes of one machine share.

    The stages of a server run on one machine. None: no limit.
    """

    start_by_s: float | None = None  # for the first denoising step
    end_by_s: float | None = None  # for every stage: one that starts later does nothing

    @classmethod
    def of(cls, request: OutputOptions, arrived_s: float) -> "Deadlines":
        """Of a request that arrived at the first stage at `arrived_s`."""
        start, end = getattr(request, "start_deadline_s", None), request.deadline_s
        return cls(None if start is None else arrived_s + start, None if end is None else arrived_s + end)

    def check(self, now_s: float, stage: str) -> None:
        """RequestTimeoutError when it is too late to begin with `stage`."""
        if self.end_by_s is not None and now_s >= self.end_by_s:
            raise RequestTimeoutError(f"deadline_s passed {now_s - self.end_by_s:.3f} s before {stage} could start")


@dataclass(frozen=True)
class OutputEnvelope:
    """What is wanted of the splats, warnings for the user, and the time spent so far.

    All that `rasterize` and `package` read: they do not care how the splats were made.
    """

    request: OutputOptions
    warnings: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)  # stage -> milliseconds
    deadlines: Deadlines = Deadlines()
    sent_s: float | None = None  # when the stage before sent it, on the clock of Deadlines; set by `to_json`
    index: int = 0  # which result of the request's num_seeds it is
    ticket: str | None = None  # of the bytes set aside for the answer, see diffsplat.serving.stage_models.answers

    def to_json(self) -> str:
        """The content of the REQUEST tensor, sent now."""
        return json.dumps(
            {
                "request": self.request.to_dict(),
                "warnings": self.warnings,
                "timings_ms": self.timings_ms,
                "deadlines": self.deadlines,
                "sent_s": time.monotonic(),
                "index": self.index,
                "ticket": self.ticket,
            }
        )

    @classmethod
    def from_json(cls: type[_Envelope], text: str) -> _Envelope:
        """Inverse of `to_json`, with every check: each stage can be called directly.

        Raises:
            InvalidRequestError: not such a JSON object, too long, a bad value, or an option that is still open.
        """
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequestError(f"REQUEST has {len(text)} characters: at most {MAX_CHARACTERS} are allowed")
        try:
            values = json.loads(text)
            options = {**values["request"]}  # TypeError unless it is an object
            warnings = tuple(str(warning) for warning in values.get("warnings", ()))
            timings_ms = {str(stage): float(ms) for stage, ms in values.get("timings_ms", {}).items()}
            deadlines = Deadlines(*(_seconds(value) for value in values.get("deadlines", ())))
            sent_s = _seconds(values.get("sent_s"))
            index = _index(values.get("index", 0))
            ticket = None if values.get("ticket") is None else _ticket(values["ticket"])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise InvalidRequestError(
                'REQUEST must be JSON: {"request": {...}, "warnings": [...], "timings_ms": {...}, '
                '"deadlines": [seconds or null, seconds or null], "sent_s": seconds or null, '
                '"index": number, "ticket": text or null}'
            ) from None
        request = cls._read_request(options)
        if request.frame_poses is not None and np.isnan(request.frame_poses[:, 0]).any():
            raise InvalidRequestError("frame_poses leaves an elevation open: must be filled in")
        return cls(request, warnings, timings_ms, deadlines, sent_s, index, ticket)

    @classmethod
    def _read_request(cls, options: dict[str, Any]) -> Any:
        return OutputOptions.from_dict({name: options[name] for name in OUTPUT_OPTIONS if name in options})

    def with_timing(self: _Envelope, stage: str, ms: float) -> _Envelope:
        """A copy that also knows how long a stage took."""
        return dataclasses.replace(self, timings_ms={**self.timings_ms, stage: round(ms, 3)})

    def queued_ms(self) -> float:
        """Milliseconds since the stage before sent it; 0 if it does not say when."""
        return 0.0 if self.sent_s is None else round(max(0.0, time.monotonic() - self.sent_s) * 1e3, 3)


def _index(value: Any) -> int:
    """A number of a result; ValueError for anything else."""
    if isinstance(value, int) and 0 <= value < MAX_NUM_SEEDS:
        return value
    raise ValueError


def _ticket(value: Any) -> str:
    """Nothing else may become part of a socket's address; ValueError or TypeError for anything else."""
    if _TICKET.fullmatch(value):
        return str(value)
    raise ValueError


def _seconds(value: Any) -> float | None:
    """A finite number, or None; ValueError or TypeError for anything else."""
    if value is None or math.isfinite(value):
        return value
    raise ValueError


@dataclass(frozen=True)
class Envelope(OutputEnvelope):
    """The same with a whole generation request, every default filled in."""

    request: GenerationRequest

    @classmethod
    def _read_request(cls, options: dict[str, Any]) -> GenerationRequest:
        request = GenerationRequest.from_dict(options)
        for name in _MUST_BE_FILLED:
            if getattr(request, name) is None:
                raise InvalidRequestError(f"REQUEST leaves {name} open: encode fills it in")
        return request

    def for_each_seed(self) -> "list[Envelope]":
        """One for each of the request's results."""
        assert self.request.seed is not None
        seeds = range(self.request.seed, self.request.seed + self.request.num_seeds)
        return [
            dataclasses.replace(self, request=dataclasses.replace(self.request, seed=seed), index=index)
            for index, seed in enumerate(seeds)
        ]
