"""Argument checks of `rasterization`: every error names the argument, its value and the allowed values."""

import math

import torch
from torch import Tensor

RENDER_MODES = ("RGB", "RGB+ED", "RGB+D")
MAX_FRAME_PAIRS = 2**28  # (splat, tile) pairs of one frame: lists of 1 GiB per thread, inside their int32 positions
OPACITY_MAX = 1.01  # room for rounding of opacity factors; the CPU kernels are exact up to 1.06


class CrowdedFrameError(ValueError):
    """The splats of one frame cover more tiles than its lists may hold."""


def check_tensor(
    name: str, tensor: object, shape: tuple[int | str, ...], sizes: dict[str, int], device: torch.device
) -> None:
    """Require a float32 tensor of this shape on this device; a letter is a size, fixed where it first appears."""
    expected = "[" + ", ".join(f"{s}={sizes[s]}" if s in sizes else str(s) for s in shape) + "]"  # type: ignore[index]
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor of shape {expected}, got {type(tensor).__name__}")
    fits = tensor.dim() == len(shape) and all(
        (sizes.setdefault(due, got) if isinstance(due, str) else due) == got
        for due, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {expected}, got {list(tensor.shape)}")
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} must be float32, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like means, got {tensor.device}")


def check_arguments(
    means: Tensor, quats: Tensor | None, scales: Tensor | None, opacities: Tensor, colors: Tensor,
    viewmats: Tensor, Ks: Tensor, width: int, height: int, near_plane: float, far_plane: float, eps2d: float,
    backgrounds: Tensor | None, render_mode: str, covars: Tensor | None,
) -> None:  # fmt: skip
    """Raises ValueError; values on CUDA are not looked at, which would make the device wait."""
    if not isinstance(means, Tensor):
        raise ValueError(f"means must be a torch.Tensor of shape [N, 3], got {type(means).__name__}")
    sizes: dict[str, int] = {}
    tensors: list[tuple[str, Tensor | None, tuple[int | str, ...]]] = [("means", means, ("N", 3))]
    if covars is None:
        if quats is None or scales is None:
            raise ValueError("quats and scales must be given where covars is None")
        tensors += [("quats", quats, ("N", 4)), ("scales", scales, ("N", 3))]
    else:
        tensors += [("covars", covars, ("N", 3, 3))]
    tensors += [
        ("opacities", opacities, ("N",)),
        ("colors", colors, ("N", 3)),
        ("viewmats", viewmats, ("C", 4, 4)),
        ("Ks", Ks, ("C", 3, 3)),
    ]
    if backgrounds is not None:
        tensors += [("backgrounds", backgrounds, ("C", 3))]
    for name, tensor, shape in tensors:
        check_tensor(name, tensor, shape, sizes, means.device)
    if render_mode not in RENDER_MODES:
        raise ValueError(f"render_mode must be one of {', '.join(RENDER_MODES)}, got {render_mode!r}")
    for name, size in (("width", width), ("height", height)):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 16384:
            raise ValueError(f"{name} must be an int in 1 .. 16384 pixels, got {size!r}")
    if not 0 < near_plane < far_plane:
        raise ValueError(f"near_plane must be above 0 and below far_plane, got {near_plane!r} and {far_plane!r}")
    if not (eps2d >= 0 and math.isfinite(eps2d)):
        raise ValueError(f"eps2d must be a finite number of square pixels >= 0, got {eps2d!r}")
    if not means.is_cuda:
        check_values(tensors)


def check_values(tensors: list[tuple[str, Tensor | None, tuple[int | str, ...]]]) -> None:
    """Every value finite, focal lengths above 0, opacities at most 1. Any NaN or infinity survives a tensor's sum."""
    for name, tensor, _ in tensors:
        assert tensor is not None
        values = tensor.detach()
        if not math.isfinite(float(values.sum(dtype=torch.float64))):
            bad = (~torch.isfinite(values)).nonzero()[0].tolist()
            raise ValueError(f"{name} must be finite, got {float(values[tuple(bad)])} at {bad}")
        if name == "opacities" and values.numel() and float(values.max()) > OPACITY_MAX:
            raise ValueError(f"opacities must be in 0 .. 1, got {float(values.max())}")
        if name == "Ks" and not bool((values[:, 0, 0] > 0).all() and (values[:, 1, 1] > 0).all()):
            raise ValueError(f"Ks must hold focal lengths above 0 pixels, got {values[:, [0, 1], [0, 1]].tolist()}")


def check_splat_scales(splat_scales: Tensor, cameras: int) -> None:
    """One finite factor per camera, not negative; 0 is the first frame of growing splats."""
    if not isinstance(splat_scales, Tensor) or splat_scales.shape != (cameras,) or splat_scales.dtype != torch.float32:
        raise ValueError(f"splat_scales must be a float32 tensor of shape [C={cameras}], got {splat_scales!r}")
    if not bool((torch.isfinite(splat_scales) & (splat_scales >= 0)).all()):
        raise ValueError(f"splat_scales must be finite and not negative, got {splat_scales.tolist()}")
