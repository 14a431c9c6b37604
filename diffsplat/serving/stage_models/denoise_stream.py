"""Responses of `denoise`: a stream for each request."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils
from diffsplat_client.contract import PREVIEW

from diffsplat.serving.engine.interface import EngineProgress
from diffsplat.serving.stage_models.answers import AnswerLedger
from diffsplat.serving.stage_models.conversion import (
    array_tensor,
    describe_early_end,
    text_tensor,
    to_triton_error,
    torch_tensor,
)
from diffsplat.stages.envelope import Envelope

if TYPE_CHECKING:
    from diffsplat.stages.denoise_job import DenoiseJob


class SharedSender:
    """The response sender of one request, which its results share. In the engine's thread.

    The first failure is told; what the other results still say is not. The stream ends with the last of them.
    """

    def __init__(self, sender: Any, results: int) -> None:
        self._sender = sender
        self._left = results
        self._failed = False

    def send(self, response: Any) -> None:
        """One more response."""
        if not self._failed:
            self._sender.send(response)

    def finish(self, response: Any) -> bool:
        """The last response of a result that is made; whether it was sent."""
        self._send_last(response, is_end=self._left == 1, told=not self._failed)
        self._left -= 1  # only now: where this fails, `fail` follows
        return not self._failed

    def fail(self, response: Any) -> None:
        """The last response of a result that is not."""
        self._left -= 1
        told, self._failed = not self._failed, True
        try:
            self._send_last(response, is_end=not self._left, told=told)
        except Exception:  # such as no memory for the message: then the stream at least ends
            self._send_last(response, is_end=not self._left, told=False)
            raise

    def is_cancelled(self) -> bool:
        """True once a result has failed, or if `denoise` was called directly and the caller has left.

        An ensemble does not pass that on.
        """
        return self._failed or bool(self._sender.is_cancelled())

    def _send_last(self, response: Any, *, is_end: bool, told: bool) -> None:
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_end else 0
        if told:
            self._sender.send(response, flags=flags)
        elif is_end:
            self._sender.send(flags=flags)


class ResponseSender:
    """The engine's listener for one result of a request: sends each event as a response."""

    def __init__(self, sender: SharedSender, request_id: str, envelope: Envelope, answers: AnswerLedger) -> None:
        """`answers` has set aside the bytes that the envelope's ticket stands for."""
        self.sender = sender
        self.request_id = request_id
        self.envelope = envelope
        self.answers = answers
        self.last = EngineProgress("queued")

    def progress(self, progress: EngineProgress) -> None:
        """A message with STATUS, perhaps with a PREVIEW, which makes the later stages run without work."""
        self.last = dataclasses.replace(progress, preview=None)
        preview = [] if progress.preview is None else [array_tensor(PREVIEW.name, progress.preview)]
        self.sender.send(pb_utils.InferenceResponse([self._status(progress), *preview]))

    def finished(self, state: "DenoiseJob", denoise_ms: float, queued_ms: float) -> None:
        """LATENTS, and the request once more: the later stages may only read tensors that come from here."""
        latents = state.result()
        envelope = self.envelope.with_timing("queued", queued_ms).with_timing("denoise", denoise_ms)
        tensors = [
            self._status(dataclasses.replace(self.last, phase="finished", step=state.step, seconds_left=None)),
            text_tensor("TIMINGS", json.dumps(envelope.timings_ms)),
            text_tensor("RESOLVED_REQUEST", envelope.to_json()),
            torch_tensor("LATENTS", latents),
        ]
        if not self.sender.finish(pb_utils.InferenceResponse(tensors)):
            self.release()

    def failed(self, error: Exception, end_state: str) -> None:
        """A last STATUS with the reason, and the end of the stream.

        Not an error response: Triton 2.51 crashes when one overtakes a progress message in the later stages.
        """
        self.release()
        end = describe_early_end(error, self.request_id, "denoise", end_state)
        last = dataclasses.replace(self.last, phase="ended", seconds_left=None)
        self.sender.fail(pb_utils.InferenceResponse([self._status(last, end)]))

    def release(self) -> None:
        """Give back the bytes of an answer that is not made."""
        if self.envelope.ticket is not None:
            self.answers.release(self.envelope.ticket)

    def is_cancelled(self) -> bool:
        """Whether nobody wants this result any more."""
        return self.sender.is_cancelled()

    def _status(self, progress: EngineProgress, end: dict[str, str] | None = None) -> Any:
        request = self.envelope.request
        status = {
            "phase": progress.phase,
            "step": progress.step,
            "steps": progress.steps or request.steps,
            "queue_position": progress.queue_position,
            "seed": request.seed,
            "index": self.envelope.index,
            "results": request.num_seeds,
            "elevation_deg": request.elevation_deg,
            "warnings": self.envelope.warnings,
            "seconds_to_start": progress.seconds_to_start,
            "seconds_left": progress.seconds_left,
            "previews": progress.previews,
            "previews_skipped": progress.previews_skipped,
            **(end or {}),
        }
        return text_tensor("STATUS", json.dumps(status))


def refuse(sender: Any, error: Exception, request_id: str) -> None:
    """An error response. Only for requests that have not sent anything: see `ResponseSender.failed`."""
    response = pb_utils.InferenceResponse(error=to_triton_error(error, request_id, "denoise"))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
