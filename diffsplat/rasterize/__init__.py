"""Gaussians to pixels: gsplat's signature and conventions, with gsplat on CUDA and our own numba kernels on the CPU.

Conventions (gsplat 1.5.3): `viewmats` are world-to-camera, OpenCV (x right, y down, z forward); `Ks` in pixels, pixel
centres at +0.5; quaternions wxyz, normalised inside; scales linear; opacities in 0 .. 1, shape [N]. A splat's alpha is
``min(0.999, opacity * exp(-s))``, skipped below 1/255; a pixel stops before its transmittance would fall to 1e-4;
splats are ordered by z of their centres, equal ones by index.

`eps2d` (square pixels added to the 2-D covariance) is 0.3 by gsplat's default; DiffSplat's official weights were
trained without dilation and need 0.

Splats with opacity below 1/255 change no pixel; on the CPU they are culled once per call.
"""

from typing import Any

import torch
from torch import Tensor

from diffsplat.rasterize.checks import CrowdedFrameError, check_arguments, check_splat_scales

__all__ = ["CrowdedFrameError", "rasterization", "render_uint8", "warm_up"]


def rasterization(
    means: Tensor,  # [N, 3]
    quats: Tensor | None,  # [N, 4]
    scales: Tensor | None,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    backgrounds: Tensor | None = None,  # [C, 3]
    render_mode: str = "RGB",
    covars: Tensor | None = None,  # [N, 3, 3]
    threads: int | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render splats from C cameras; differentiable with respect to splats and backgrounds.

    Args:
        means: Centres in world units.
        quats: Rotations (w, x, y, z) of any length; zero quaternions drop their splats. May be None with `covars`.
        scales: Standard deviations along the splats' axes, world units; may be None with `covars`.
        opacities: In 0 .. 1.
        colors: RGB, any range.
        viewmats: World-to-camera, OpenCV.
        Ks: Intrinsics in pixels.
        width: Pixels.
        height: Pixels.
        near_plane: Splats with a smaller camera z are left out.
        far_plane: Splats with a larger camera z are left out.
        eps2d: Square pixels added to the diagonal of every 2-D covariance.
        backgrounds: Background colours, black by default; never added to depth.
        render_mode: "RGB"; "RGB+D" appends sum(w z); "RGB+ED" appends sum(w z) / max(alpha, 1e-10).
        covars: Covariances to use instead of quats and scales; the upper triangle is read and gets the gradient.
        threads: CPU threads, one camera each; torch.get_num_threads() by default. Does not change the images.

    Returns:
        render_colors [C, H, W, 3 or 4], render_alphas [C, H, W, 1] and gsplat's meta (on the CPU: width and height).

    Raises:
        ValueError: An argument of a wrong shape, dtype, device or value.
        CrowdedFrameError: (a ValueError) On the CPU, more large splats than the lists of one frame can hold.
        ImportError: CUDA tensors without gsplat.
    """
    check_arguments(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height,
        near_plane, far_plane, eps2d, backgrounds, render_mode, covars,
    )  # fmt: skip
    if means.is_cuda:
        from diffsplat.rasterize import cuda

        return cuda.rasterization(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height,
            near_plane, far_plane, eps2d, backgrounds, render_mode, covars,
        )  # fmt: skip
    from diffsplat.rasterize import autograd, cpu

    if viewmats.requires_grad or Ks.requires_grad:
        raise ValueError(
            "viewmats and Ks must not require gradients: the CPU path does not compute gradients of cameras"
        )
    view = cpu.View(width, height, near_plane, far_plane, eps2d)
    rows = cpu.cameras(autograd.as_array(viewmats), autograd.as_array(Ks), view)
    if covars is not None:
        quats = scales = None
    images, alphas = autograd.Rasterize.apply(
        means, quats, scales, opacities, colors, covars, backgrounds,
        rows, view, render_mode, threads or torch.get_num_threads(),
    )  # fmt: skip
    return images, alphas, {"width": width, "height": height}


@torch.no_grad()
def render_uint8(
    means: Tensor,  # [N, 3]
    quats: Tensor | None,  # [N, 4]
    scales: Tensor | None,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, 3]
    viewmats: Tensor,  # [C, 4, 4]
    Ks: Tensor,  # [C, 3, 3]
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    eps2d: float = 0.3,
    backgrounds: Tensor | None = None,  # [C, 3]
    covars: Tensor | None = None,  # [N, 3, 3]
    splat_scales: Tensor | None = None,  # [C]
    threads: int | None = None,
) -> Tensor:
    """Render 8-bit RGB frames for serving, without gradients; background and conversion happen inside the CPU kernel.

    Arguments as in `rasterization`; `splat_scales` are factors on all splats' scales, one per camera (the growing-splat
    video), 1 by default, on the host. On CUDA `opacities` may be [C, N], others for each camera. A channel is
    ``int(255 * clamp(x, 0, 1))``, truncated as in the DiffSplat reference.

    Returns:
        Frames [C, H, W, 3], uint8, on the device of `means`.

    Raises:
        ValueError: An argument of a wrong shape, dtype, device or value.
        CrowdedFrameError: (a ValueError) On the CPU, more large splats than the lists of one frame can hold.
        ImportError: CUDA tensors without gsplat.
    """
    per_camera = means.is_cuda and opacities.dim() == 2 and opacities.shape[0] == viewmats.shape[0]
    check_arguments(
        means, quats, scales, opacities[0] if per_camera else opacities, colors, viewmats, Ks, width, height,
        near_plane, far_plane, eps2d, backgrounds, "RGB", covars,
    )  # fmt: skip
    count = viewmats.shape[0]
    if splat_scales is None:
        splat_scales = torch.ones(count)
    check_splat_scales(splat_scales, count)
    if backgrounds is None:
        backgrounds = means.new_zeros(count, 3)
    if covars is not None:
        quats = scales = None
    if means.is_cuda:
        from diffsplat.rasterize import cuda

        return cuda.render_uint8(
            means, quats, scales, opacities, colors, viewmats, Ks, width, height,
            near_plane, far_plane, eps2d, backgrounds, splat_scales.tolist(), covars,
        )  # fmt: skip
    from diffsplat.rasterize import autograd, cpu

    as_array = autograd.as_array
    view = cpu.View(width, height, near_plane, far_plane, eps2d)
    prepared = cpu.prepare(
        as_array(means),
        None if quats is None else as_array(quats),
        None if scales is None else as_array(scales),
        None if covars is None else autograd.upper_triangle(covars),
        as_array(opacities),
        as_array(colors),
    )
    rows = cpu.cameras(as_array(viewmats), as_array(Ks), view)
    frames = cpu.render_uint8(
        prepared, rows, view, as_array(backgrounds), as_array(splat_scales), threads or torch.get_num_threads()
    )
    return torch.from_numpy(frames)


def warm_up(*, gradients: bool = False) -> None:
    """Compile the CPU kernels, or load them from the cache, before the first request needs them.

    A server calls this at model load: 4 - 6 s without a cache (about 10 s with gradients), 0.3 s with one.
    """
    means, quats, scales = torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.1)
    opacities, colors = torch.ones(1), torch.ones(1, 3)
    viewmat = torch.eye(4)[None]
    viewmat[:, 2, 3] = 1.0
    intrinsics = torch.tensor([[[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]])
    render_uint8(means, quats, scales, opacities, colors, viewmat, intrinsics, 16, 16)
    rasterization(means, quats, scales, opacities, colors, viewmat, intrinsics, 16, 16)
    if gradients:
        means.requires_grad_()
        images, alphas, _ = rasterization(means, quats, scales, opacities, colors, viewmat, intrinsics, 16, 16)
        (images.sum() + alphas.sum()).backward()
