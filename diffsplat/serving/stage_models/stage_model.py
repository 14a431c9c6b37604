"""The part that all stages have in common as Triton models: load, warm up, answer each request on its own.

Errors: `InvalidRequestError` goes to the client as INVALID_ARG with its own text; anything else is logged with the
request's id, and the client gets a neutral INTERNAL message.
"""

import atexit
import gc
import json
import logging
import os
import time
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from diffsplat.serving.stage_models.answers import AnswerLedger, return_share
from diffsplat.serving.stage_models.conversion import (
    array_tensor,
    check_request_id,
    describe_early_end,
    read_array,
    required_text,
    text_tensor,
    to_triton_error,
)
from diffsplat.serving.stage_models.gauge import InFlightGauge
from diffsplat.serving.stage_models.log_lines import log_to_stderr
from diffsplat.stages.envelope import OutputEnvelope

_log = logging.getLogger("diffsplat.serving")


class StageModel:
    """One stage as a Triton model. Subclasses load the stage and answer one request."""

    name: str

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version folder and run everything once, so that the first request is not slower."""
        log_to_stderr()
        config = json.loads(args["model_config"])
        self.parameters: dict[str, str] = {
            key: value["string_value"] for key, value in config.get("parameters", {}).items()
        }
        self.threads = int(self.parameters["threads"]) if self.parameters.get("threads", "0") != "0" else None
        self.device = self.parameters.get("device")  # None, without `diffsplat serve`: what it was exported for
        self.version = args["model_version"]
        folder = Path(args["model_repository"]) / self.version
        self.in_flight = InFlightGauge(self.name, self.version, args["model_instance_name"])
        started = perf_counter()
        gc.disable()  # searching what is being loaded for garbage takes a seventh of the time, and finds none
        self.load(folder)
        self.warm_up()
        gc.freeze()  # what is loaded stays: it is never searched again
        gc.enable()
        _log.info(
            "%s version %s is loaded and warm after %.1f s",
            args["model_name"],
            self.version,
            perf_counter() - started,
        )

    def make_ledger(self) -> AnswerLedger:
        """For a first stage: limits the bytes of its answers by the parameter max_answer_mb of `config.pbtxt`."""
        return AnswerLedger(1_000_000 * int(self.parameters["max_answer_mb"]))

    def load(self, folder: Path) -> None:
        """Build the stage."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """Run once whatever compiles or allocates on first use."""

    def finalize(self) -> None:
        """End the process without tearing down the interpreter: unloading torch takes seconds at every stop."""
        atexit.register(os._exit, 0)  # handlers run in reverse order, and after Triton has got the answer

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer each request on its own; an error does not affect the others."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            check_request_id(request.request_id())
            return pb_utils.InferenceResponse(self.answer(request))
        except Exception as error:
            return pb_utils.InferenceResponse(error=to_triton_error(error, request.request_id(), self.name))

    def answer(self, request: Any) -> list[Any]:
        """Output tensors of one request; an empty list for a progress message, which carries no work."""
        raise NotImplementedError


class LaterStage(StageModel):
    """A stage after `denoise`: called without tensors for every progress message, which it answers without tensors."""

    source: str  # the tensor it works on
    request_tensor: str  # comes from the same stage as `source`
    also: tuple[str, ...] = ()  # tensors of that stage which only some requests have
    envelope: type[OutputEnvelope] = OutputEnvelope  # how much of the request it reads
    read = staticmethod(read_array)  # how `source` is read
    passes_on = False  # whether other stages make the answer from what it makes

    def _respond(self, request: Any) -> Any:
        """Never an error response: Triton 2.51 crashes when it overtakes a progress message of the same request."""
        tensors = []
        try:
            source = self.read(request, self.source)
            if source is not None:
                envelope = self.envelope.from_json(required_text(request, self.request_tensor))
                tensors.append(array_tensor(f"INDEX_{self.name.upper()}", np.array([envelope.index], np.int32)))
                tensors += self._answer(request, source, envelope)
        except Exception as error:
            end = describe_early_end(error, request.request_id(), self.name)
            tensors.append(text_tensor(f"EARLY_END_{self.name.upper()}", json.dumps(end)))
        return pb_utils.InferenceResponse(tensors)

    def _answer(self, request: Any, source: Any, envelope: Any) -> list[Any]:
        """Do the work if its deadline has not passed."""
        queued_ms, started = envelope.queued_ms(), perf_counter()
        made = False
        try:
            envelope.deadlines.check(time.monotonic(), self.name)
            with self.in_flight:
                tensors = self.work(source, envelope, *(read_array(request, name) for name in self.also))
            made = True
        finally:
            if envelope.ticket is not None and not (made and self.passes_on):
                return_share(envelope.ticket, None if self.passes_on else self.name)
        timings = {f"queued_{self.name}": queued_ms, self.name: round((perf_counter() - started) * 1e3, 3)}
        return [*tensors, text_tensor(f"TIMINGS_{self.name.upper()}", json.dumps(timings))]

    def work(self, source: Any, envelope: Any, *also: np.ndarray | None) -> list[Any]:
        """Output tensors except the timings; `source` is what `read` gives."""
        raise NotImplementedError
