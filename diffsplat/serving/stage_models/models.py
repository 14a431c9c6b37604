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
from diffsplat_client.contract import (
    IMAGE_TENSORS,
    RECONSTRUCTION_TENSORS,
    REQUEST_TENSORS,
    TEXT_TENSORS,
)
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import GenerationRequest

from diffsplat.serving.drain import refuse_while_draining
from diffsplat.serving.stage_models.conversion import (
    array_tensor,
    bytes_tensor,
    read_arrays,
    read_tensor,
    text_tensor,
    torch_tensor,
)
from diffsplat.serving.stage_models.stage_model import LaterStage, StageModel
from diffsplat.stages.envelope import Envelope, OutputEnvelope

if TYPE_CHECKING:
    from torch import Tensor

    from diffsplat.stages.decode import DecodeResult

_log = logging.getLogger("diffsplat.serving")


class EncodeModel(StageModel):
    """The tensors of a client's request -> REQUEST, and the features of its texts and images."""

    name = "encode"

    def load(self, folder: Path) -> None:
        """Text encoder and tokenizer."""
        from diffsplat.stages.encode import EncodeStage

        self.stage = EncodeStage.load(folder, self.threads, self.device)

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


class ReconstructModel(StageModel):
    """Views of an object -> SPLATS, with the request that belongs to them."""

    name = "reconstruct"

    def load(self, folder: Path) -> None:
        """GSRecon."""
        from diffsplat.stages.reconstruct import ReconstructStage

        self.stage = ReconstructStage.load(folder, self.threads, self.device)
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
    read = staticmethod(read_tensor)
    passes_on = True
    envelope = Envelope

    def load(self, folder: Path) -> None:
        """The splat decoder."""
        from diffsplat.stages.decode import DecodeStage

        self.stage = DecodeStage.load(folder, self.threads, self.device)

    def warm_up(self) -> None:
        """Latents of zeros."""
        self.stage.warm_up()

    def work(self, source: "Tensor", envelope: Envelope, *also: np.ndarray | None) -> list[Any]:
        """Decode one object."""
        return _decoded_tensors(self.stage.run(source, envelope), envelope)


class RasterizeModel(LaterStage):
    """SPLATS -> FRAMES, if the request has poses."""

    name, source, request_tensor = "rasterize", "SPLATS", "DECODED_REQUEST"
    read = staticmethod(read_tensor)

    def load(self, folder: Path) -> None:
        """Only the geometry."""
        from diffsplat.stages.rasterize import RasterizeStage

        self.stage = RasterizeStage.load(folder, self.threads, self.device)

    def warm_up(self) -> None:
        """Load or compile the kernels."""
        self.stage.warm_up()

    def work(self, source: "Tensor", envelope: OutputEnvelope, *also: np.ndarray | None) -> list[Any]:
        """Draw one object."""
        frames = self.stage.run(source, envelope).frames
        return [] if frames is None else [torch_tensor("FRAMES", frames)]


class PackageModel(LaterStage):
    """SPLATS -> GAUSSIANS, ASSETS, or both; and SERVED, which version of what made them."""

    name, source, request_tensor = "package", "SPLATS", "DECODED_REQUEST"
    also = ("RAW_SPLATS",)

    def load(self, folder: Path) -> None:
        """Only which bundle is served."""
        from diffsplat.export_record import ExportRecord
        from diffsplat.stages.package import PackageStage

        record = ExportRecord.read(folder)
        self.stage = PackageStage()
        served = {"version": int(self.version), "bundle": record.bundle, "bundle_digest": record.digest}
        self.served = text_tensor("SERVED", json.dumps(served))

    def work(self, source: np.ndarray, envelope: OutputEnvelope, *also: np.ndarray | None) -> list[Any]:
        """Package one object."""
        gaussians, assets = self.stage.run(source, envelope, *also)
        tensors = [self.served] if gaussians is None else [self.served, array_tensor("GAUSSIANS", gaussians)]
        if assets:
            tensors += [bytes_tensor("ASSETS", assets.values()), bytes_tensor("ASSET_FORMATS", map(str.encode, assets))]
        return tensors


def _decoded_tensors(decoded: "DecodeResult", envelope: OutputEnvelope) -> list[Any]:
    """The tensors that `rasterize` and `package` read."""
    splats, raw_splats = decoded
    tensors = [torch_tensor("SPLATS", splats), text_tensor("DECODED_REQUEST", envelope.to_json())]
    return tensors if raw_splats is None else [*tensors, torch_tensor("RAW_SPLATS", raw_splats)]
