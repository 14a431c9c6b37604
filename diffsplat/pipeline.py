"""All stages in one process: the yardstick of the served ensemble, also used by training to look at its results.

    pipeline = Pipeline.load("build/pico")            # an exported repository, with the graphs that are served
    pipeline = Pipeline.from_bundle(open_bundle(...)) # torch networks of a bundle, without an export
    result = pipeline.generate(GenerationRequest("a red cube"))

Triton loads the same stage classes, so the two cannot drift apart.
"""

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest

from diffsplat.backends.transfer import to_host
from diffsplat.bundle import Bundle
from diffsplat.graph import Precision
from diffsplat.stages.decode import DecodeStage
from diffsplat.stages.denoise import DenoiseStage
from diffsplat.stages.encode import EncodeStage
from diffsplat.stages.package import PackageStage
from diffsplat.stages.rasterize import RasterizeStage


class PipelineResult(NamedTuple):
    """One generated object."""

    request: GenerationRequest  # with every default filled in
    splats: np.ndarray  # [N, 14] every decoded splat, columns of contract.GAUSSIAN_COLUMNS
    gaussians: np.ndarray | None  # [N', 14] those above the asset's opacity threshold; not beside every format
    assets: dict[str, bytes]  # format -> file; for all formats but "raw"
    frames: np.ndarray | None  # [F, H, W, 3] uint8; None when no poses were given
    warnings: tuple[str, ...]
    timings_ms: dict[str, float]  # stage -> milliseconds

    @property
    def seed(self) -> int:
        """The seed that reproduces this result."""
        assert self.request.seed is not None
        return self.request.seed


class Pipeline:
    """All stages, called one after the other."""

    def __init__(
        self,
        encode: EncodeStage,
        denoise: DenoiseStage,
        decode: DecodeStage,
        rasterize: RasterizeStage,
        package: PackageStage,
    ) -> None:
        self.encode = encode
        self.denoise = denoise
        self.decode = decode
        self.rasterize = rasterize
        self.package = package

    @classmethod
    def load(
        cls,
        repository: str | os.PathLike[str],
        version: str = "1",
        threads: int | None = None,
        device: str | None = None,
    ) -> "Pipeline":
        """From a folder written by `python -m export`: see `runtime.load_graphs`."""
        folders = {
            stage: Path(repository) / stage / version
            for stage in ("encode", "denoise", "decode", "rasterize", "package")
        }
        return cls(
            EncodeStage.load(folders["encode"], threads, device),
            DenoiseStage.load(folders["denoise"], threads, device),
            DecodeStage.load(folders["decode"], threads, device),
            RasterizeStage.load(folders["rasterize"], threads, device),
            PackageStage.load(folders["package"]),
        )

    @classmethod
    def from_bundle(cls, bundle: Bundle, precision: Precision = "fp32") -> "Pipeline":
        """Straight from a bundle, all networks run by torch."""
        return cls(
            EncodeStage.from_bundle(bundle, precision),
            DenoiseStage.from_bundle(bundle, precision),
            DecodeStage.from_bundle(bundle, precision),
            RasterizeStage(bundle.spec),
            PackageStage(),
        )

    def generate(
        self, request: GenerationRequest, on_progress: Callable[[int, int], None] | None = None
    ) -> PipelineResult:
        """Generate one object.

        Args:
            request: as for the ensemble.
            on_progress: called with (steps done, steps in all) after every step.

        Raises:
            InvalidRequestError: names the bad field, its value and the allowed range.
            NotFiniteError: the denoiser's numbers left the range of its precision.
        """
        if request.num_seeds > 1:
            raise InvalidRequestError(
                f"num_seeds = {request.num_seeds}: must be 1, a pipeline makes one object at a time"
            )
        work = self.encode.run(request)
        envelope = work.envelope
        started = perf_counter()
        self.denoise.check(work)
        job = self.denoise.start(work)
        while job.step < job.steps:
            self.denoise.step([job])
            if on_progress is not None:
                on_progress(job.step, job.steps)
        denoised = perf_counter()
        splats, raw_splats = self.decode.run(job.result(), envelope)
        decoded = perf_counter()
        frames = self.rasterize.run(splats, envelope).frames
        rasterized = perf_counter()
        raw = None if raw_splats is None else to_host(raw_splats).numpy()
        on_host = to_host(splats).numpy()
        gaussians, assets = self.package.run(on_host, envelope, raw)
        times = {"denoise": started, "decode": denoised, "rasterize": decoded, "package": rasterized}
        ends = (denoised, decoded, rasterized, perf_counter())
        timings_ms = {
            name: round((end - start) * 1e3, 3) for (name, start), end in zip(times.items(), ends, strict=True)
        }
        return PipelineResult(
            request=envelope.request,
            splats=on_host,
            gaussians=gaussians,
            assets=assets,
            frames=None if frames is None else frames.numpy(),
            warnings=envelope.warnings,
            timings_ms={**envelope.timings_ms, **timings_ms},
        )
