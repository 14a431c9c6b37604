"""`reconstruct`: views of an object -> its splats, by GSRecon."""

import os
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.reconstruction_request import MAPS, ReconstructionRequest
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.backends.transfer import to_device
from diffsplat.bundle import Bundle
from diffsplat.export_record import ExportRecord
from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL, Cameras, generated_view_cameras, plucker_rays
from diffsplat.graph import Graph
from diffsplat.runtime import bundle_graph, load_graph
from diffsplat.splats.gsrecon import GSRECON, gsrecon_config
from diffsplat.stages.decode import DecodeResult, splats_of
from diffsplat.stages.envelope import Deadlines, OutputEnvelope


class ReconstructResult(NamedTuple):
    """One object, as it leaves `decode`."""

    decoded: DecodeResult
    envelope: OutputEnvelope


class ReconstructStage:
    """Checks the views against the bundle, runs its GSRecon, and lifts the grid into splats as `decode` does."""

    def __init__(self, spec: BackboneSpec, gsrecon: Graph) -> None:
        self.spec = spec
        self.config = gsrecon_config(spec)
        self.gsrecon = gsrecon

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], threads: int | None = None, device: str | None = None
    ) -> "ReconstructStage":
        """From a version folder: see `runtime.load_graphs`."""
        return cls(ExportRecord.read(folder).spec, load_graph(folder, GSRECON, threads, device))

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "ReconstructStage":
        """Straight from a bundle, run by torch. BundleError when it has no GSRecon."""
        return cls(bundle.spec, bundle_graph(bundle, GSRECON))

    def run(self, request: ReconstructionRequest) -> ReconstructResult:
        """Reconstruct one object. InvalidRequestError for invalid views, or views that the bundle does not take."""
        deadlines = Deadlines.of(request, time.monotonic())
        request.validate()
        self._check_bundle(request)
        tensors = {name: torch.tensor(array) for name, array in request.to_tensors().items() if array.dtype != object}
        maps = [tensors[name.upper()] for name in self.config.input_maps]  # each [V, H, W, channels]
        images = torch.cat(maps, dim=-1).permute(0, 3, 1, 2)[None]  # [1, V, C, H, W]
        cameras = Cameras(tensors["CAMERA_TO_WORLD"], tensors.get("INTRINSICS", _intrinsics(len(images[0]))))
        side = self.spec.geometry.grid_size
        rays = plucker_rays(*cameras, side, side, self.config.ray_pixel_rule)[None]  # [1, V, 6, H, W]
        device = self.gsrecon.device
        grid = self.gsrecon(to_device(images, device), to_device(rays, device))  # [1, V, 12, H, W]
        decoded = splats_of(grid, cameras, self.spec.geometry, request)
        return ReconstructResult(decoded, OutputEnvelope(request.output_options(), deadlines=deadlines))

    def warm_up(self) -> None:
        """One white object."""
        views, side = self.spec.geometry.views, self.spec.geometry.grid_size
        sizes = self.config.input_maps.items()
        maps: dict[str, Any] = {name: np.ones((views, side, side, channels), np.float32) for name, channels in sizes}
        poses = generated_view_cameras(0.0, self.spec.distance, views).camera_to_world
        self.run(ReconstructionRequest(camera_to_world=poses.numpy(), **maps))

    def _check_bundle(self, request: ReconstructionRequest) -> None:
        """Refuse a number, size or set of maps that this bundle's GSRecon does not take."""
        geometry, taken = self.spec.geometry, tuple(self.config.input_maps)
        views, side = np.shape(request.images)[:2]
        if views != geometry.views:
            raise InvalidRequestError(f"images has {views} views: must be {geometry.views} for this bundle")
        if side != geometry.grid_size:
            size = f"{geometry.grid_size} x {geometry.grid_size}"
            raise InvalidRequestError(f"images has {side} x {side} pixels: must be {size} for this bundle")
        for name in MAPS:
            if name in taken and getattr(request, name) is None:
                raise InvalidRequestError(f"{name} is missing: this bundle needs {', '.join(taken)}")
            if name not in taken and getattr(request, name) is not None:
                raise InvalidRequestError(f"{name} was given: must be left out, this bundle takes {', '.join(taken)}")


def _intrinsics(views: int) -> Tensor:
    """Intrinsics [V, 4] that every network was trained with."""
    return torch.tensor([DIFFSPLAT_FOCAL, DIFFSPLAT_FOCAL, 0.5, 0.5]).expand(views, 4)
