"""`rasterize`: splats -> 8-bit frames from the poses asked for."""

import os
from typing import NamedTuple

import torch
from diffsplat_client.cloud import VISIBLE_OPACITY
from diffsplat_client.errors import InvalidRequestError
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.export_record import ExportRecord
from diffsplat.geometry.cameras import orbit_cameras, pixel_intrinsics, world_to_camera
from diffsplat.geometry.gaussians import Gaussians, from_array
from diffsplat.rasterize import CrowdedFrameError, render_uint8, warm_up
from diffsplat.splats.render import opacity_factors
from diffsplat.stages.checks import check_splats
from diffsplat.stages.envelope import OutputEnvelope

BACKGROUND = 1.0  # white, as in training


class RasterizeResult(NamedTuple):
    """Frames in the order of the poses; None if the request has no poses."""

    frames: Tensor | None  # [F, H, W, 3] uint8


class RasterizeStage:
    """Draws one object from many poses. Splats too faint to change a pixel are culled once, not per frame."""

    def __init__(self, spec: BackboneSpec, threads: int | None = None) -> None:
        self.geometry = spec.geometry
        self.threads = threads

    @classmethod
    def load(cls, folder: str | os.PathLike[str], threads: int | None = None) -> "RasterizeStage":
        """From a version folder, which holds nothing but the geometry."""
        return cls(ExportRecord.read(folder).spec, threads)

    def run(self, splats: Tensor, envelope: OutputEnvelope) -> RasterizeResult:
        """Draw [N, 14]. InvalidRequestError for what `check_splats` refuses, and for too many huge splats."""
        check_splats(splats)
        request = envelope.request
        if request.frame_poses is None or not len(request.frame_poses):
            return RasterizeResult(None)
        opacities = splats[:, 6]
        visible = (opacities > request.opacity_threshold_render) & (opacities >= VISIBLE_OPACITY)
        poses = torch.as_tensor(request.frame_poses, dtype=torch.float32)
        try:
            return RasterizeResult(self._draw(from_array(splats[visible]), poses, request.frame_size))
        except CrowdedFrameError as error:
            raise InvalidRequestError(
                f"frame_poses with frame_size = {request.frame_size}: {error}; take a larger distance, a smaller "
                "splat_scale or smaller frames"
            ) from None

    def _draw(self, gaussians: Gaussians, poses: Tensor, size: int) -> Tensor:
        """One object [1, N] from poses [F, 4] (contract.POSE_COLUMNS) -> [F, size, size, 3] uint8."""
        elevation_deg, azimuth_deg, distance, splat_scales = poses.unbind(-1)  # each [F]
        cameras = orbit_cameras(elevation_deg, azimuth_deg, distance)
        viewmats = world_to_camera(cameras.camera_to_world)  # [F, 4, 4]
        intrinsics = pixel_intrinsics(cameras.intrinsics, size, size)  # [F, 3, 3]
        # the published rasterizer's opacity factor depends on the view, so such objects are drawn frame by frame
        groups = [slice(f, f + 1) for f in range(len(poses))] if self.geometry.opacity_compensation else [slice(None)]
        frames = []
        for group in groups:
            opacities = gaussians.opacities
            if self.geometry.opacity_compensation:
                sized = gaussians._replace(scales=gaussians.scales * splat_scales[group])
                opacities = opacities * opacity_factors(sized, viewmats[group], intrinsics[group], size, size)[:, 0]
            frames.append(
                render_uint8(
                    gaussians.means[0],
                    gaussians.quats_wxyz[0],
                    gaussians.scales[0],
                    opacities[0],
                    gaussians.rgbs[0],
                    viewmats[group],
                    intrinsics[group],
                    size,
                    size,
                    near_plane=self.geometry.near_plane,
                    eps2d=self.geometry.eps2d,
                    backgrounds=torch.full((len(viewmats[group]), 3), BACKGROUND),
                    splat_scales=splat_scales[group],
                    threads=self.threads,
                )
            )
        return torch.cat(frames)

    def warm_up(self) -> None:
        """Compile the kernels, or load them from their cache."""
        warm_up()
