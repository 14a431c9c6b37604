"""Previews: the splats that a request would give now, of the denoiser's estimate of the clean latents."""

import os
from time import perf_counter

import numpy as np

from diffsplat.backends.transfer import to_host
from diffsplat.bundle import Bundle
from diffsplat.export_record import ExportRecord
from diffsplat.graph import Precision
from diffsplat.networks import preview_decoder
from diffsplat.runtime import bundle_graphs
from diffsplat.stages.decode import DecodeStage
from diffsplat.stages.denoise_job import DenoiseJob
from diffsplat.stages.package import kept_splats


class PreviewStage:
    """Decodes the estimate as `decode` does the result, by the tiny decoder where the bundle has one."""

    def __init__(self, decode: DecodeStage) -> None:
        self.decode = decode

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], threads: int | None = None, device: str | None = None
    ) -> "PreviewStage":
        """From a version folder of `decode`: see `runtime.load_graphs`."""
        name = preview_decoder(ExportRecord.read(folder).spec)
        return cls(DecodeStage.load(folder, threads, device, name))

    @classmethod
    def from_bundle(cls, bundle: Bundle, precision: Precision = "fp32") -> "PreviewStage":
        """Straight from a bundle, run by torch."""
        name = preview_decoder(bundle.spec)
        return cls(DecodeStage(bundle.spec, bundle_graphs(bundle, [name], precision)[name]))

    def warm_up(self) -> float:
        """Decode nothing, twice; the seconds of the second time."""
        self.decode.warm_up()
        started = perf_counter()
        self.decode.warm_up()
        return perf_counter() - started

    def run(self, job: DenoiseJob) -> np.ndarray:
        """What a job that has made a step would give: [N, 14] on the host, only splats that its request keeps.

        Raises:
            InvalidRequestError, NotFiniteError: as `DecodeStage.run`.
        """
        splats = self.decode.run(job.x0_previous, job.envelope).splats
        return kept_splats(to_host(splats).numpy(), job.envelope.request)
