"""A request on its way through the stages: the REQUEST tensor."""

import dataclasses
import json
from dataclasses import dataclass, field

import numpy as np
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest

MAX_CHARACTERS = 1_000_000  # of the JSON; the longest sensible one, 720 poses and two prompts, has a tenth
_MUST_BE_FILLED = ("elevation_deg", "distance", "seed", "steps", "scheduler", "eta", "guidance_scale")


@dataclass(frozen=True)
class Envelope:
    """A request without open defaults, what the user should be told about it, and the time spent on it so far.

    Behind `reconstruct`, where nothing is generated, all that concerns generation is left open.
    """

    request: GenerationRequest
    warnings: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)  # stage -> milliseconds

    def to_json(self) -> str:
        """The content of the REQUEST tensor."""
        return json.dumps(
            {"request": json.loads(self.request.to_json()), "warnings": self.warnings, "timings_ms": self.timings_ms}
        )

    @classmethod
    def from_json(cls, text: str, generated: bool = True) -> "Envelope":
        """Inverse of `to_json`, with every check: each stage can be called directly.

        Args:
            text: the JSON.
            generated: False for a stage that does not look at how the splats were made: it may all be open.

        Raises:
            InvalidRequestError: not such a JSON object, too long, a bad value, or an option that is still open.
        """
        if len(text) > MAX_CHARACTERS:
            raise InvalidRequestError(f"REQUEST has {len(text)} characters: at most {MAX_CHARACTERS} are allowed")
        try:
            values = json.loads(text)
            request_json = json.dumps(values["request"])
            warnings = tuple(str(warning) for warning in values.get("warnings", ()))
            timings_ms = {str(stage): float(ms) for stage, ms in values.get("timings_ms", {}).items()}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise InvalidRequestError(
                'REQUEST must be JSON: {"request": {...}, "warnings": [...], "timings_ms": {...}}'
            ) from None
        request = GenerationRequest.from_json(request_json)
        for name in _MUST_BE_FILLED if generated else ():
            if getattr(request, name) is None:
                raise InvalidRequestError(f"REQUEST leaves {name} open: encode fills it in")
        if request.frame_poses is not None and np.isnan(request.frame_poses[:, 0]).any():
            raise InvalidRequestError("frame_poses leaves an elevation open: must be filled in")
        return cls(request, warnings, timings_ms)

    def with_timing(self, stage: str, ms: float) -> "Envelope":
        """A copy that also knows how long a stage took."""
        return dataclasses.replace(self, timings_ms={**self.timings_ms, stage: round(ms, 3)})
