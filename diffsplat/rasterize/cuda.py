"""The CUDA path: gsplat 1.5.3, called with the package's own arguments.

Only this module imports gsplat. A successful import does not mean that it works (kernels are built or loaded at the
first call), so the path is chosen by `means.is_cuda`, never by whether the import works.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BYTES_PER_SPLAT = 512  # of one camera: projection, 16 tiles listed twice for the sort, and what the allocator rounds up
BYTES_PER_PIXEL = 48  # colours, alphas, last indices, their float copies and the 8-bit frame


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
    """Arguments and results as in `diffsplat.rasterize.rasterization`; tensors may have a leading axis B of objects.

    `packed=False` is the faster choice for one object that fills the frame.
    """
    function = _gsplat_rasterization()
    if means.shape[-2] == 0:
        # gsplat would launch kernels over nothing. The zero keeps the result attached to the inputs' graph.
        zero = means.sum() + opacities.sum() + colors.sum()
        cameras = viewmats.shape[:-2]  # [(B,) C]
        image = means.new_zeros(*cameras, height, width, 3 if render_mode == "RGB" else 4) + zero
        if backgrounds is not None:
            ground = torch.nn.functional.pad(backgrounds, (0, image.shape[-1] - 3))
            image = image + ground[..., None, None, :]
        return image, means.new_zeros(*cameras, height, width, 1) + zero, {"width": width, "height": height}
    images, alphas, meta = function(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height,
        near_plane=near_plane, far_plane=far_plane, eps2d=eps2d, backgrounds=backgrounds,
        render_mode=render_mode, covars=covars, packed=packed,
    )  # fmt: skip
    return images, alphas, meta


def cameras_per_call(splats: int, width: int, height: int, device: torch.device) -> int:
    """How many cameras fit into half of the device's free memory, at least 1."""
    per_camera = splats * BYTES_PER_SPLAT + width * height * BYTES_PER_PIXEL
    return max(1, _free_bytes(device) // 2 // per_camera)


def _free_bytes(device: torch.device) -> int:
    """Free memory of the device, and what torch's allocator holds without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@torch.no_grad()
def render_uint8(
    means: Tensor, quats: Tensor | None, scales: Tensor | None, opacities: Tensor, colors: Tensor,
    viewmats: Tensor, Ks: Tensor, width: int, height: int, near_plane: float, far_plane: float, eps2d: float,
    backgrounds: Tensor, splat_scales: Sequence[float], covars: Tensor | None,
) -> Tensor:  # fmt: skip
    """Frames [C, H, W, 3] uint8 on the same device, by one gsplat call; `opacities` [N], or [C, N] one for each camera.

    Cameras that see the same splats share them. Where splats differ from camera to camera in scale or opacity, every
    camera is an object of gsplat's batch. The host does not look at a tensor; gsplat itself waits once per call.
    """
    count, factor = len(splat_scales), splat_scales[0] if splat_scales else 1.0
    alike = opacities.dim() == 1 and all(other == factor for other in splat_scales)
    if alike:
        scales, covars = _scaled(scales, factor), _scaled(covars, factor**2)
    else:
        means, colors = _per_camera(means, count), _per_camera(colors, count)
        opacities = _per_camera(opacities, count) if opacities.dim() == 1 else opacities
        quats = None if quats is None else _per_camera(quats, count)
        scales = _scaled_per_camera(scales, splat_scales)
        covars = _scaled_per_camera(covars, [other**2 for other in splat_scales])
        viewmats, Ks, backgrounds = viewmats[:, None], Ks[:, None], backgrounds[:, None]
    images, _, _ = rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks,
        width, height, near_plane, far_plane, eps2d, backgrounds, "RGB", covars,
    )  # fmt: skip
    return (255 * images.clamp(0, 1)).to(torch.uint8).reshape(count, height, width, 3)


def _scaled(values: Tensor | None, factor: float) -> Tensor | None:
    return None if values is None else values * factor


def _per_camera(values: Tensor, count: int) -> Tensor:
    """[N, ...] -> [C, N, ...]."""
    return values.expand(count, *values.shape)


def _scaled_per_camera(values: Tensor | None, factors: Sequence[float]) -> Tensor | None:
    """[N, ...] -> [C, N, ...], each camera's by its factor; the factors are known to the host and never copied."""
    return None if values is None else torch.stack([values * factor for factor in factors])
