"""The CUDA path: gsplat 1.5.3, called with the package's own arguments.

Only this module imports gsplat. A successful import does not mean that it works (kernels are built or loaded at the
first call), so the path is chosen by `means.is_cuda`, never by whether the import works.
"""

from typing import Any

import torch
from diffsplat_client.cloud import VISIBLE_OPACITY
from torch import Tensor

UINT8_CAMERAS = 16  # cameras per gsplat call: unpacked buffers take about 60 bytes per camera and splat


def _gsplat_rasterization() -> Any:
    try:
        from gsplat import rasterization as function
    except ImportError as error:
        raise ImportError(
            "rasterizing CUDA tensors needs gsplat (pip install gsplat==1.5.3 packaging) and a CUDA toolkit, or a "
            f"prebuilt gsplat/csrc.so; the import failed with: {error}. CPU tensors do not need gsplat"
        ) from error
    return function


def rasterization(
    means: Tensor, quats: Tensor | None, scales: Tensor | None, opacities: Tensor, colors: Tensor,
    viewmats: Tensor, Ks: Tensor, width: int, height: int, near_plane: float, far_plane: float, eps2d: float,
    backgrounds: Tensor | None, render_mode: str, covars: Tensor | None, packed: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
    """Arguments and results as in `diffsplat.rasterize.rasterization`.

    `packed=False` is the faster choice for one object that fills the frame.
    """
    function = _gsplat_rasterization()
    if means.shape[0] == 0:
        # gsplat would launch kernels over nothing. The zero keeps the result attached to the inputs' graph.
        zero = means.sum() + opacities.sum() + colors.sum()
        count = viewmats.shape[0]
        image = means.new_zeros(count, height, width, 3 if render_mode == "RGB" else 4) + zero
        if backgrounds is not None:
            ground = torch.nn.functional.pad(backgrounds, (0, image.shape[-1] - 3))
            image = image + ground[:, None, None, :]
        return image, means.new_zeros(count, height, width, 1) + zero, {"width": width, "height": height}
    images, alphas, meta = function(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height,
        near_plane=near_plane, far_plane=far_plane, eps2d=eps2d, backgrounds=backgrounds,
        render_mode=render_mode, covars=covars, packed=packed,
    )  # fmt: skip
    return images, alphas, meta


@torch.no_grad()
def render_uint8(
    means: Tensor, quats: Tensor | None, scales: Tensor | None, opacities: Tensor, colors: Tensor,
    viewmats: Tensor, Ks: Tensor, width: int, height: int, near_plane: float, far_plane: float, eps2d: float,
    backgrounds: Tensor, splat_scales: list[float], covars: Tensor | None,
) -> Tensor:  # fmt: skip
    """Frames [C, H, W, 3] uint8 on the same device; cameras of equal splat scale share a gsplat call."""
    visible = opacities >= VISIBLE_OPACITY
    means, opacities, colors = means[visible], opacities[visible], colors[visible]
    quats = None if quats is None else quats[visible]
    scales = None if scales is None else scales[visible]
    covars = None if covars is None else covars[visible]
    frames = means.new_empty(viewmats.shape[0], height, width, 3, dtype=torch.uint8)
    start = 0
    while start < viewmats.shape[0]:
        factor, end = splat_scales[start], start + 1
        while end < min(viewmats.shape[0], start + UINT8_CAMERAS) and splat_scales[end] == factor:
            end += 1
        part = slice(start, end)
        images, _, _ = rasterization(
            means, quats, None if scales is None else scales * factor, opacities, colors, viewmats[part], Ks[part],
            width, height, near_plane, far_plane, eps2d, backgrounds[part], "RGB",
            None if covars is None else covars * factor**2,
        )  # fmt: skip
        frames[part] = (255 * images.clamp(0, 1)).to(torch.uint8)
        start = end
    return frames
