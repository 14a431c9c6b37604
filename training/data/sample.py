"""Views of one object -> the tensors that every training stage consumes.

World of a sample: y-up (OpenGL), azimuth counted from view 0, scaled so that view 0's camera is at radius 1.4.
Letters: V views, H = W pixels, B objects.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffsplat.geometry.cameras import DIFFSPLAT_FOCAL, PixelRule, unproject_depth
from diffsplat.images.prepare import resize_antialiased
from training.data.camera_chain import relative_orbit_cameras
from training.data.record import RawViews


class Sample(NamedTuple):
    """One object. Maps are float32, composited over white by alpha unless said otherwise."""

    images_rgb: Tensor  # [V, 3, H, W] in [0, 1]
    alphas: Tensor  # [V, 1, H, W] in [0, 1]
    normals: Tensor  # [V, 3, H, W] world normal * 0.5 + 0.5; without channels if the record has none
    coords: Tensor  # [V, 3, H, W] world xyz * 0.5 + 0.5, not clamped
    depths: Tensor  # [V, 1, H, W] planar depth, scaled with the world; 0 = background, not composited
    camera_to_world: Tensor  # [V, 4, 4] OpenCV camera axes
    intrinsics: Tensor  # [V, 4] fx, fy, cx, cy in units of the image side
    caption: str
    uid: str
    targets: "Sample | None" = None  # the same views of another size, if renders are compared with those


class Batch(NamedTuple):
    """B objects; the tensors of `Sample` with a leading axis."""

    images_rgb: Tensor  # [B, V, 3, H, W]
    alphas: Tensor  # [B, V, 1, H, W]
    normals: Tensor  # [B, V, 3, H, W]
    coords: Tensor  # [B, V, 3, H, W]
    depths: Tensor  # [B, V, 1, H, W]
    camera_to_world: Tensor  # [B, V, 4, 4]
    intrinsics: Tensor  # [B, V, 4]
    captions: tuple[str, ...]
    uids: tuple[str, ...]
    targets: "Batch | None" = None  # the same views of another size, if renders are compared with those

    @property
    def truth(self) -> "Batch":
        """The views that renders are compared with."""
        return self if self.targets is None else self.targets

    def rows(self, rows: slice) -> "Batch":
        """Some of the objects."""
        whole = self._replace(targets=None)
        cut = Batch._make(None if values is None else values[rows] for values in whole)
        return cut._replace(targets=None if self.targets is None else self.targets.rows(rows))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device`."""
        return Batch(
            images_rgb=self.images_rgb.to(device),
            alphas=self.alphas.to(device),
            normals=self.normals.to(device),
            coords=self.coords.to(device),
            depths=self.depths.to(device),
            camera_to_world=self.camera_to_world.to(device),
            intrinsics=self.intrinsics.to(device),
            captions=self.captions,
            uids=self.uids,
            targets=None if self.targets is None else self.targets.to(device),
        )


def build_sample(
    views: RawViews, caption: str, uid: str, pixel_rule: PixelRule, published_side: int | None = None
) -> Sample:
    """Camera chain, normal rotation, unprojection and compositing.

    A map that the views lack has no channels.

    Args:
        views: The object's views in the desired order; row 0 is the reference view.
        caption: Text of the object.
        uid: Id of the object.
        pixel_rule: Grid of the unprojection: "pixel_centers", or "legacy" for the published weights.
        published_side: Side of the images if they are to be resized as published, after all maps were made at full
            size; normals and coordinates are then composited over white a second time, so that edges fade twice.

    Raises:
        ValueError: the cameras fit no orbit.
    """
    cameras = relative_orbit_cameras(views.camera_to_world_zup)
    rgba = _channels_first(views.rgba)  # [V, 4, H, W]
    alphas = rgba[:, 3:]
    depths = torch.from_numpy(views.depths)[:, None] * cameras.world_scale  # [V, 1, H, W]
    intrinsics = torch.tensor([DIFFSPLAT_FOCAL, DIFFSPLAT_FOCAL, 0.5, 0.5]).repeat(len(alphas), 1)
    xyz = unproject_depth(depths, cameras.camera_to_world, intrinsics, pixel_rule)  # [V, 3, H, W]
    normals = _channels_first(views.normals)
    if normals.shape[1]:
        normals = torch.einsum("ij,vjhw->vihw", cameras.normal_rotation, normals)
    maps = [rgba[:, :3], 0.5 * normals + 0.5, 0.5 * xyz + 0.5]
    if not normals.shape[1]:
        maps[1:] = [normals[:, :0], xyz[:, :0]]
    images, normals, coords = (over_white(values, alphas) for values in maps)
    if published_side is not None:
        images, alphas, normals, coords, depths = (
            _resized(values, published_side) for values in (images, alphas, normals, coords, depths)
        )
        normals, coords = over_white(normals, alphas), over_white(coords, alphas)
    return Sample(
        images_rgb=images,
        alphas=alphas,
        normals=normals,
        coords=coords,
        depths=depths,
        camera_to_world=cameras.camera_to_world,
        intrinsics=intrinsics,
        caption=caption,
        uid=uid,
    )


def over_white(maps: Tensor, alphas: Tensor) -> Tensor:
    """``maps * alpha + 1 - alpha``. [V, C, H, W], [V, 1, H, W] -> [V, C, H, W]."""
    return maps * alphas + (1.0 - alphas)


def _resized(maps: Tensor, side: int) -> Tensor:
    """Bilinear with anti-aliasing, [V, C, H, W] -> [V, C, side, side]."""
    if not maps.shape[1]:
        return maps[:, :, :side, :side]
    return resize_antialiased(maps, side)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of equal shape, all with targets or none.

    Raises:
        ValueError: the list is empty.
    """
    if not samples:
        raise ValueError("cannot collate an empty list of samples")
    targets = [sample.targets for sample in samples if sample.targets is not None]
    return Batch(
        images_rgb=torch.stack([sample.images_rgb for sample in samples]),
        alphas=torch.stack([sample.alphas for sample in samples]),
        normals=torch.stack([sample.normals for sample in samples]),
        coords=torch.stack([sample.coords for sample in samples]),
        depths=torch.stack([sample.depths for sample in samples]),
        camera_to_world=torch.stack([sample.camera_to_world for sample in samples]),
        intrinsics=torch.stack([sample.intrinsics for sample in samples]),
        captions=tuple(sample.caption for sample in samples),
        uids=tuple(sample.uid for sample in samples),
        targets=collate(targets) if targets else None,
    )


def _channels_first(maps: np.ndarray) -> Tensor:
    """[V, H, W, C] array -> [V, C, H, W] tensor."""
    return torch.from_numpy(maps).permute(0, 3, 1, 2)
