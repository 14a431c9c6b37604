"""`rasterize`: splats -> 8-bit frames from the poses asked for.

On CUDA splats stay on the device, where frames are composed and converted; only 8-bit frames are copied to the host.
"""

import os
from typing import NamedTuple

import torch
from diffsplat_client.cloud import VISIBLE_OPACITY
from diffsplat_client.errors import InvalidRequestError
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.backends.devices import find_device
from diffsplat.backends.transfer import HOST, rows_where, to_device, to_host
from diffsplat.export_record import ExportRecord
from diffsplat.geometry.cameras import orbit_cameras, pixel_intrinsics, world_to_camera
from diffsplat.geometry.gaussians import Gaussians, from_array
from diffsplat.rasterize import CrowdedFrameError, cuda, render_uint8, warm_up
from diffsplat.splats.render import opacity_factors
from diffsplat.stages.checks import check_splats
from diffsplat.stages.envelope import OutputEnvelope

BACKGROUND = 1.0  # white, as in training


class RasterizeResult(NamedTuple):
    """Frames in the order of the poses; None if the request has no poses."""

    frames: Tensor | None  # [F, H, W, 3] uint8


class RasterizeStage:
    """Draws one object from many poses. Splats too faint to change a pixel are culled once, not per frame."""

    def __init__(self, spec: BackboneSpec, threads: int | None = None, device: torch.device = HOST) -> None:
        """`threads`: on the CPU, by default the available cores. `device`: that draws."""
        self.geometry = spec.geometry
        self.threads = threads
        self.device = device

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], threads: int | None = None, device: str | None = None
    ) -> "RasterizeStage":
        """From a version folder, which holds nothing but the geometry. DeviceError if the device does not exist."""
        record = ExportRecord.read(folder)
        return cls(record.spec, threads, find_device(device or record.device))

    def run(self, splats: Tensor, envelope: OutputEnvelope) -> RasterizeResult:
        """Draw [N, 14] of any device; frames lie on the host.

        InvalidRequestError for what `check_splats` refuses, and for too many huge splats.
        """
        splats = to_device(splats, self.device)
        check_splats(splats)
        request = envelope.request
        if request.frame_poses is None or not len(request.frame_poses):
            return RasterizeResult(None)
        opacities = splats[:, 6]
        visible = (opacities > request.opacity_threshold_render) & (opacities >= VISIBLE_OPACITY)
        poses = torch.as_tensor(request.frame_poses, dtype=torch.float32)
        try:
            return RasterizeResult(self._draw(from_array(rows_where(splats, visible)), poses, request.frame_size))
        except CrowdedFrameError as error:
            raise InvalidRequestError(
                f"frame_poses with frame_size = {request.frame_size}: {error}; take a larger distance, a smaller "
                "splat_scale or smaller frames"
            ) from None

    def _draw(self, gaussians: Gaussians, poses: Tensor, size: int) -> Tensor:
        """One object [1, N] from poses [F, 4] (contract.POSE_COLUMNS) on the host -> [F, size, size, 3] uint8 there."""
        elevation_deg, azimuth_deg, distance, splat_scales = poses.unbind(-1)  # each [F]
        cameras = orbit_cameras(elevation_deg, azimuth_deg, distance)
        viewmats = to_device(world_to_camera(cameras.camera_to_world), self.device)  # [F, 4, 4]
        intrinsics = to_device(pixel_intrinsics(cameras.intrinsics, size, size), self.device)  # [F, 3, 3]
        frames = []
        for group in self._groups(len(poses), gaussians.means.shape[1], size):
            opacities = gaussians.opacities[0]
            if self.geometry.opacity_compensation:
                opacities = self._compensated(gaussians, viewmats[group], intrinsics[group], splat_scales[group], size)
            drawn = render_uint8(
                gaussians.means[0],
                gaussians.quats_wxyz[0],
                gaussians.scales[0],
                opacities,
                gaussians.rgbs[0],
                viewmats[group],
                intrinsics[group],
                size,
                size,
                near_plane=self.geometry.near_plane,
                eps2d=self.geometry.eps2d,
                backgrounds=viewmats.new_full((len(viewmats[group]), 3), BACKGROUND),
                splat_scales=splat_scales[group],
                threads=self.threads,
            )
            frames.append(to_host(drawn))
        return torch.cat(frames)

    def _groups(self, frames: int, splats: int, size: int) -> list[slice]:
        """Frames that one call draws: on CUDA as many as fit, on the CPU all that have the same opacities."""
        if self.device.type == "cuda":
            count = cuda.cameras_per_call(splats, size, size, self.device)
        else:
            count = 1 if self.geometry.opacity_compensation else frames
        return [slice(first, first + count) for first in range(0, frames, count)]

    def _compensated(
        self, gaussians: Gaussians, viewmats: Tensor, intrinsics: Tensor, splat_scales: Tensor, size: int
    ) -> Tensor:
        """Opacities of frames [G]: the published rasterizer's factor depends on the view. [N] of one, else [G, N]."""
        frames = []
        for f, splat_scale in enumerate(splat_scales.tolist()):
            sized, one = gaussians._replace(scales=gaussians.scales * splat_scale), slice(f, f + 1)
            frames.append(
                gaussians.opacities * opacity_factors(sized, viewmats[one], intrinsics[one], size, size)[:, 0]
            )
        return frames[0][0] if len(frames) == 1 else torch.cat(frames)

    def warm_up(self) -> None:
        """Compile the kernels, or load them from their cache, and draw a splat on the device."""
        if self.device.type == "cpu":
            warm_up()
            return
        splat = torch.tensor([[0.0, 0, 0, 1, 1, 1, 1, 0.1, 0.1, 0.1, 1, 0, 0, 0]])
        for scales in ([1.0, 1.0], [1.0, 2.0]):
            poses = torch.tensor([[0.0, 0.0, 1.4, scale] for scale in scales])
            self._draw(from_array(to_device(splat, self.device)), poses, 16)
