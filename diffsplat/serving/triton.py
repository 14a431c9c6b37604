"""Triton's side of the stages: tensors in, a stage's call, tensors out. `model_repository/*/1/model.py` names these.

Runs only inside Triton's Python backend, which provides `triton_python_backend_utils`; its classes appear there after
this module has been imported. Stages are imported when a model is loaded, so that `package` never loads torch.
"""

import json
import logging
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from diffsplat_client.contract import (
    IMAGE_TENSORS,
    POOLED_TEXT,
    RECONSTRUCTION_TENSORS,
    REQUEST_TENSORS,
    TEXT_EMBEDDINGS,
    TEXT_MASK,
    TEXT_TENSORS,
)
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import GenerationRequest

from diffsplat.serving.drain import refuse_while_draining
from diffsplat.serving.engine import Engine, EnginePolicy
from diffsplat.serving.triton_io import (
    array_tensor,
    check_request_id,
    read_array,
    read_arrays,
    required_array,
    required_text,
    text_tensor,
    to_torch,
)
from diffsplat.serving.triton_stage import LaterStage, StageModel
from diffsplat.serving.triton_stream import ResponseSender, refuse
from diffsplat.stages.envelope import Envelope, OutputEnvelope

if TYPE_CHECKING:
    from diffsplat.backbones import BackboneSpec
    from diffsplat.stages.decode import DecodeResult
    from diffsplat.stages.denoise import DenoiseJob
    from diffsplat.stages.work import DenoiseWork

_log = logging.getLogger("diffsplat.serving")
_TINY_PROMPT = "warm up"


class EncodeModel(StageModel):
    """The tensors of a client's request -> REQUEST, and the features of its texts and images."""

    name = "encode"

    def load(self, folder: Path) -> None:
        """Text encoder and tokenizer."""
        from diffsplat.stages.encode import EncodeStage

        self.stage = EncodeStage.load(folder, self.threads)

    def warm_up(self) -> None:
        """One prompt, one image."""
        self.stage.warm_up()

    def answer(self, request: Any) -> list[Any]:
        """Encode one request."""
        refuse_while_draining()
        with self.in_flight:
            result = self.stage.run(GenerationRequest.from_tensors(read_arrays(request, REQUEST_TENSORS)))
        features = [*zip(TEXT_TENSORS, result.text, strict=True), *zip(IMAGE_TENSORS, result.images, strict=True)]
        return [
            text_tensor("REQUEST", result.envelope.to_json()),
            *(
                array_tensor(spec.name, values.numpy())
                for spec, values in features
                if values is not None and values.numel()
            ),
        ]


class DenoiseModel(StageModel):
    """REQUEST and text features -> a stream of STATUS, and LATENTS at its end. STOP ends the request of the same id."""

    name = "denoise"

    def load(self, folder: Path) -> None:
        """Both graphs, and the thread that runs them."""
        from diffsplat.stages.denoise import DenoiseStage

        self.stage = DenoiseStage.load(folder, self.threads)
        self.policy = EnginePolicy.from_parameters(self.parameters)
        self.answers = self.make_ledger()

    def warm_up(self) -> None:
        """One step for one request and for a full batch, then the engine starts."""
        for requests in {1, self.policy.max_batch}:
            self.stage.warm_up(requests)
        family = pb_utils.MetricFamily(
            name="diffsplat_denoise_requests",
            description="Requests in the denoise engine by state; Triton's own counts end when a request is queued",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        gauges = [family.Metric(labels={"state": state}) for state in ("active", "waiting")]
        self._metrics = (family, *gauges)  # a metric goes when its family is collected

        def report(*load: int) -> None:
            for gauge, requests in zip(gauges, load, strict=True):
                gauge.set(requests)

        self.engine: Engine[DenoiseWork, DenoiseJob] = Engine(self.stage, self.policy, on_load=report)
        _log.info("denoise engine: %s", self.policy)

    def execute(self, requests: list[Any]) -> None:
        """Enqueue; answers come from the engine's thread."""
        for request in requests:
            sender, request_id = request.get_response_sender(), request.request_id()
            try:
                check_request_id(request_id)
                if self._stop(request, request_id):
                    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                    continue
                self._submit(sender, request_id, self._read_work(request))
            except Exception as error:
                refuse(sender, error, request_id)

    def _submit(self, sender: Any, request_id: str, work: "DenoiseWork") -> None:
        envelope = self.answers.reserve_for(work.envelope, _splats(self.stage.spec))
        assert envelope.ticket is not None
        listener = ResponseSender(sender, request_id, envelope, self.answers)
        try:
            self.engine.submit(request_id, work, listener, *envelope.deadlines)
        except Exception:
            self.answers.release(envelope.ticket)
            raise

    def finalize(self) -> None:
        """End the engine's thread; requests still running end with an error type."""
        self.engine.close()
        super().finalize()

    def _stop(self, request: Any, request_id: str) -> bool:
        stop = read_array(request, "STOP")
        if stop is None or not stop.reshape(-1)[0]:
            return False
        if not request_id:
            raise InvalidRequestError("STOP needs the id of the request to stop as its own request id")
        count = self.engine.stop(request_id)
        _log.info("request %s: stop asked for, %d found", request_id, count)
        return True

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


class ReconstructModel(StageModel):
    """Views of an object -> SPLATS, with the request that belongs to them."""

    name = "reconstruct"

    def load(self, folder: Path) -> None:
        """GSRecon."""
        from diffsplat.stages.reconstruct import ReconstructStage

        self.stage = ReconstructStage.load(folder, self.threads)
        self.answers = self.make_ledger()

    def warm_up(self) -> None:
        """One object."""
        self.stage.warm_up()

    def answer(self, request: Any) -> list[Any]:
        """Reconstruct one object."""
        refuse_while_draining()
        started = perf_counter()
        with self.in_flight:
            decoded, envelope = self.stage.run(
                ReconstructionRequest.from_tensors(read_arrays(request, RECONSTRUCTION_TENSORS))
            )
        envelope = self.answers.reserve_for(envelope, len(decoded.splats))
        timings = {self.name: round((perf_counter() - started) * 1e3, 3)}
        return [*_decoded_tensors(decoded, envelope), text_tensor("TIMINGS_RECONSTRUCT", json.dumps(timings))]


class DecodeModel(LaterStage):
    """LATENTS -> SPLATS, with the request that belongs to them."""

    name, source, request_tensor = "decode", "LATENTS", "RESOLVED_REQUEST"
    passes_on = True
    envelope = Envelope

    def load(self, folder: Path) -> None:
        """The splat decoder."""
        from diffsplat.stages.decode import DecodeStage

        self.stage = DecodeStage.load(folder, self.threads)

    def warm_up(self) -> None:
        """Latents of zeros."""
        spec = self.stage.spec
        shape = (spec.geometry.views, spec.latent_channels, spec.latent_size, spec.latent_size)
        request = GenerationRequest(_TINY_PROMPT).with_defaults(
            **{**spec.request_defaults, "elevation_deg": 0.0, "seed": 0}
        )
        self.work(np.zeros(shape, np.float32), Envelope(request))

    def work(self, array: np.ndarray, envelope: Envelope, *also: np.ndarray | None) -> list[Any]:
        """Decode one object."""
        return _decoded_tensors(self.stage.run(to_torch(array), envelope), envelope)


class RasterizeModel(LaterStage):
    """SPLATS -> FRAMES, if the request has poses."""

    name, source, request_tensor = "rasterize", "SPLATS", "DECODED_REQUEST"

    def load(self, folder: Path) -> None:
        """Only the geometry."""
        from diffsplat.stages.rasterize import RasterizeStage

        self.stage = RasterizeStage.load(folder, self.threads)

    def warm_up(self) -> None:
        """Load or compile the kernels."""
        self.stage.warm_up()

    def work(self, array: np.ndarray, envelope: OutputEnvelope, *also: np.ndarray | None) -> list[Any]:
        """Draw one object."""
        frames = self.stage.run(to_torch(array), envelope).frames
        return [] if frames is None else [array_tensor("FRAMES", frames.numpy())]


class PackageModel(LaterStage):
    """SPLATS -> GAUSSIANS, ASSET, or both."""

    name, source, request_tensor = "package", "SPLATS", "DECODED_REQUEST"
    also = ("RAW_SPLATS",)

    def load(self, folder: Path) -> None:
        """Nothing."""
        from diffsplat.stages.package import PackageStage

        self.stage = PackageStage.load(folder)

    def work(self, array: np.ndarray, envelope: OutputEnvelope, *also: np.ndarray | None) -> list[Any]:
        """Package one object."""
        gaussians, asset = self.stage.run(array, envelope, *also)
        tensors = [] if gaussians is None else [array_tensor("GAUSSIANS", gaussians)]
        return tensors if asset is None else [*tensors, pb_utils.Tensor("ASSET", np.array([asset], dtype=np.object_))]


def _splats(spec: "BackboneSpec") -> int:
    """Splats of an object."""
    return spec.geometry.views * spec.geometry.grid_size**2


def _decoded_tensors(decoded: "DecodeResult", envelope: OutputEnvelope) -> list[Any]:
    """The tensors that `rasterize` and `package` read."""
    splats, raw_splats = decoded
    tensors = [array_tensor("SPLATS", splats.numpy()), text_tensor("DECODED_REQUEST", envelope.to_json())]
    return tensors if raw_splats is None else [*tensors, array_tensor("RAW_SPLATS", raw_splats.numpy())]
