"""Triton's side of `denoise`: requests go to the engine, responses come from its thread."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from diffsplat_client.contract import (
    IMAGE_TENSORS,
    POOLED_TEXT,
    STOP_ANSWER,
    TEXT_EMBEDDINGS,
    TEXT_MASK,
)
from diffsplat_client.errors import InvalidRequestError

from diffsplat.serving.engine.engine import Engine
from diffsplat.serving.engine.forecast import StepTimes
from diffsplat.serving.engine.policy import EnginePolicy
from diffsplat.serving.stage_models.conversion import (
    check_request_id,
    read_array,
    required_array,
    required_text,
    text_tensor,
    to_torch,
)
from diffsplat.serving.stage_models.denoise_stream import ResponseSender, SharedSender, refuse
from diffsplat.serving.stage_models.engine_metrics import EngineMetrics
from diffsplat.serving.stage_models.stage_model import StageModel
from diffsplat.stages.envelope import Envelope

if TYPE_CHECKING:
    from diffsplat.backbones import BackboneSpec
    from diffsplat.stages.denoise_job import DenoiseJob
    from diffsplat.stages.work import DenoiseWork

_log = logging.getLogger("diffsplat.serving")


class DenoiseModel(StageModel):
    """REQUEST and text features -> a stream of STATUS, and LATENTS at its end. STOP ends the request of the same id."""

    name = "denoise"

    def load(self, folder: Path) -> None:
        """Both graphs and, for previews, the decoder of the `decode` beside it."""
        from diffsplat.backends.cuda_sync import read_sync_debug
        from diffsplat.stages.denoise import DenoiseStage

        self.policy = EnginePolicy.from_parameters(self.parameters)
        sync_debug = read_sync_debug(self.parameters)
        self.stage = DenoiseStage.load(folder, self.threads, self.device, self.policy.max_batch, sync_debug)
        self.previews = None
        if self.policy.makes_previews:
            from diffsplat.stages.preview import PreviewStage

            self.previews = PreviewStage.load(folder.parents[1] / "decode" / folder.name, self.threads, self.device)
        self.answers = self.make_ledger()

    def warm_up(self) -> None:
        """One step for one request and for a full batch, on CUDA for every bucket; then the engine starts.

        Where each size of a batch is compiled, also for those between, so that nobody's step waits for a compiler.
        """
        full = self.policy.max_batch
        for requests in range(1, full + 1) if self.stage.compiles_batches else {1, full}:
            self.stage.warm_up(requests)
        times, preview = StepTimes(), None
        if self.previews is not None:
            preview = self.previews.run
            times.note_preview(self.previews.warm_up())
        metrics = EngineMetrics(self.version, self.policy.max_batch)
        self.engine: Engine[DenoiseWork, DenoiseJob] = Engine(
            self.stage, self.policy, observer=metrics, times=times, preview=preview
        )
        _log.info("denoise engine: %s", self.policy)

    def execute(self, requests: list[Any]) -> None:
        """Enqueue; answers come from the engine's thread."""
        for request in requests:
            sender, request_id = request.get_response_sender(), request.request_id()
            try:
                check_request_id(request_id)
                if (answer := self._stop(request, request_id)) is not None:
                    response = pb_utils.InferenceResponse([text_tensor(STOP_ANSWER.name, answer)])
                    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                    continue
                self._submit(sender, request_id, self._read_work(request))
            except Exception as error:
                refuse(sender, error, request_id)

    def _submit(self, sender: Any, request_id: str, work: "DenoiseWork") -> None:
        """One request for each seed; they share the text, the images, and the stream."""
        shared, listeners = SharedSender(sender, work.envelope.request.num_seeds), []
        try:
            for envelope in work.envelope.for_each_seed():
                envelope = self.answers.reserve_for(envelope, _splats(self.stage.spec))
                listeners.append(ResponseSender(shared, request_id, envelope, self.answers))
            start_by_s, end_by_s = work.envelope.deadlines
            self.engine.submit_together(
                request_id,
                [(work._replace(envelope=listener.envelope), listener) for listener in listeners],
                priority=work.envelope.request.priority,
                start_by_s=start_by_s,
                end_by_s=end_by_s,
                preview_every=work.envelope.request.preview_every,
            )
        except Exception:
            for listener in listeners:
                listener.release()
            raise

    def finalize(self) -> None:
        """End the engine's thread; requests still running end with an error type."""
        self.engine.close()
        super().finalize()

    def _stop(self, request: Any, request_id: str) -> str | None:
        """The answer to a STOP; None for anything else."""
        stop = read_array(request, "STOP")
        if stop is None or not stop.reshape(-1)[0]:
            return None
        if not request_id:
            raise InvalidRequestError("STOP needs the id of the request to stop as its own request id")
        answer = self.engine.stop(request_id)
        _log.info("request %s: stop asked for, %s", request_id, answer)
        return answer

    def _read_work(self, request: Any) -> "DenoiseWork":
        from diffsplat.stages.image_features import ImageFeatures
        from diffsplat.stages.work import DenoiseWork
        from diffsplat.text.features import TextFeatures

        envelope = Envelope.from_json(required_text(request, "REQUEST"))
        embeddings = required_array(request, TEXT_EMBEDDINGS.name)
        mask, pooled = (read_array(request, spec.name) for spec in (TEXT_MASK, POOLED_TEXT))
        text = [
            embeddings,
            np.ones(embeddings.shape[:2], bool) if mask is None else mask,
            np.zeros((len(embeddings), 0), np.float32) if pooled is None else pooled,
        ]
        images = [read_array(request, spec.name) for spec in IMAGE_TENSORS]
        work = DenoiseWork(
            envelope,
            TextFeatures(*map(to_torch, text)),
            ImageFeatures(*(None if array is None else to_torch(array) for array in images)),
        )
        self.stage.check(work)
        return work


def _splats(spec: "BackboneSpec") -> int:
    """Splats of an object."""
    return spec.geometry.views * spec.geometry.grid_size**2
