"""How `denoise` answers: a stream of responses per request."""

import json
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from diffsplat.serving.engine import Progress
from diffsplat.serving.triton_io import array_tensor, text_tensor, to_triton_error
from diffsplat.stages.envelope import Envelope

if TYPE_CHECKING:
    from diffsplat.stages.denoise import DenoiseJob


class ResponseStream:
    """The engine's listener for one request: what happens to it, as responses."""

    def __init__(self, sender: Any, request_id: str, envelope: Envelope) -> None:
        self.sender = sender
        self.request_id = request_id
        self.envelope = envelope

    def progress(self, progress: Progress) -> None:
        """A message with STATUS alone; the later stages see it pass by with nothing to do."""
        self.sender.send(pb_utils.InferenceResponse([self._status(progress)]))

    def finished(self, state: "DenoiseJob", denoise_ms: float, queued_ms: float) -> None:
        """LATENTS, and an echo of the request: the later stages may read nothing that does not come from here."""
        if not bool(state.latents.isfinite().all()):
            raise RuntimeError("the network's result is not finite")
        envelope = self.envelope.with_timing("queued", queued_ms).with_timing("denoise", denoise_ms)
        tensors = [
            self._status(Progress("finished", state.step, state.steps, 0, None)),
            text_tensor("TIMINGS", json.dumps(envelope.timings_ms)),
            text_tensor("RESOLVED_REQUEST", envelope.to_json()),
            array_tensor("LATENTS", state.latents.numpy()),
        ]
        self.sender.send(pb_utils.InferenceResponse(tensors), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def failed(self, error: Exception) -> None:
        """The stream ends with an error."""
        send_error(self.sender, error, self.request_id)

    def is_cancelled(self) -> bool:
        """True when `denoise` was called directly and the caller is gone (an ensemble does not pass this on)."""
        return bool(self.sender.is_cancelled())

    def _status(self, progress: Progress) -> Any:
        request = self.envelope.request
        status = {
            "phase": progress.phase,
            "step": progress.step,
            "steps": progress.steps or request.steps,
            "queue_position": progress.queue_position,
            "seed": request.seed,
            "elevation_deg": request.elevation_deg,
            "warnings": self.envelope.warnings,
            "seconds_left": progress.seconds_left,
        }
        return text_tensor("STATUS", json.dumps(status))


def send_error(sender: Any, error: Exception, request_id: str) -> None:
    response = pb_utils.InferenceResponse(error=to_triton_error(error, request_id, "denoise"))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
