"""Views of an object -> its splats, in one process: the yardstick of the served reconstructions.

result = ReconstructionPipeline.load("build/pico").run(ReconstructionRequest(images, camera_to_world, ...))
"""

import os
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
from diffsplat_client.contract import RECONSTRUCT
from diffsplat_client.reconstruction_request import ReconstructionRequest

from diffsplat.backends.transfer import to_host
from diffsplat.bundle import Bundle
from diffsplat.stages.package import PackageStage
from diffsplat.stages.rasterize import RasterizeStage
from diffsplat.stages.reconstruct import ReconstructStage


class ReconstructionResult(NamedTuple):
    """One object; fields as in PipelineResult."""

    splats: np.ndarray  # [N, 14]
    gaussians: np.ndarray | None  # [N', 14]
    assets: dict[str, bytes]  # format -> file; for all formats but "raw"
    frames: np.ndarray | None  # [F, H, W, 3] uint8
    timings_ms: dict[str, float]


class ReconstructionPipeline:
    """The stages of the ensemble `diffsplat_reconstruct`, called one after the other."""

    def __init__(self, reconstruct: ReconstructStage, rasterize: RasterizeStage, package: PackageStage) -> None:
        self.reconstruct = reconstruct
        self.rasterize = rasterize
        self.package = package

    @classmethod
    def load(
        cls,
        repository: str | os.PathLike[str],
        version: str = "1",
        threads: int | None = None,
        device: str | None = None,
    ) -> "ReconstructionPipeline":
        """From a folder written by `python -m export`: see `runtime.load_graphs`."""
        folders = {stage: Path(repository) / stage / version for stage in (RECONSTRUCT, "rasterize", "package")}
        return cls(
            ReconstructStage.load(folders[RECONSTRUCT], threads, device),
            RasterizeStage.load(folders["rasterize"], threads, device),
            PackageStage.load(folders["package"]),
        )

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "ReconstructionPipeline":
        """Straight from a bundle, run by torch. BundleError when it has no GSRecon."""
        return cls(ReconstructStage.from_bundle(bundle), RasterizeStage(bundle.spec), PackageStage())

    def run(self, request: ReconstructionRequest) -> ReconstructionResult:
        """Reconstruct one object. InvalidRequestError names the bad field, its value and what is allowed."""
        times = [perf_counter()]
        (splats, raw_splats), envelope = self.reconstruct.run(request)
        times.append(perf_counter())
        frames = self.rasterize.run(splats, envelope).frames
        times.append(perf_counter())
        raw = None if raw_splats is None else to_host(raw_splats).numpy()
        on_host = to_host(splats).numpy()
        gaussians, assets = self.package.run(on_host, envelope, raw)
        times.append(perf_counter())
        stages = (RECONSTRUCT, "rasterize", "package")
        spent = {stage: 1e3 * (times[i + 1] - times[i]) for i, stage in enumerate(stages)}
        return ReconstructionResult(on_host, gaussians, assets, None if frames is None else frames.numpy(), spent)
