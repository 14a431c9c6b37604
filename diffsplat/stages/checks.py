"""Checks of the tensors that reach a stage: every stage of a server can be called directly.

Needs numpy only, since `package` does not load torch. Torch tensors on the CPU are read in place; of those on another
device only the extremes are copied, once per object.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from diffsplat_client.contract import GAUSSIAN_COLUMNS, GAUSSIAN_WIDTH
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.output_options import MAX_GAUSSIANS

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 1e6  # far above any real embedding, latent or splat, and far below what would overflow float32 later


def check_shape(name: str, values: "np.ndarray | Tensor", expected: Sequence[int | tuple[int, int]]) -> None:
    """Refuse a tensor whose sizes differ from `expected`, numbers or (smallest, largest) pairs."""
    ranges = [(size, size) if isinstance(size, int) else size for size in expected]
    shape = list(values.shape)
    if len(shape) != len(ranges) or any(
        not low <= size <= high for size, (low, high) in zip(shape, ranges, strict=True)
    ):
        allowed = ", ".join(str(low) if low == high else f"{low} .. {high}" for low, high in ranges)
        raise InvalidRequestError(f"{name} has shape {shape}: must be [{allowed}]")


def check_range(name: str, values: "np.ndarray | Tensor", low: float = -LARGEST, high: float = LARGEST) -> None:
    """Refuse values outside low .. high, and NaN."""
    array = _on_host(values)
    if array.size and not (low <= array.min() and array.max() <= high):  # false for NaN
        bad = array[~((array >= low) & (array <= high))][0]
        raise InvalidRequestError(f"{name} holds {bad:g}: all values must be in {low:g} .. {high:g}")


def check_splats(splats: "np.ndarray | Tensor", name: str = "SPLATS") -> None:
    """Refuse splats that are not [N, 14] numbers of sensible size with opacities in 0 .. 1 and scales >= 0."""
    check_shape(name, splats, ((0, MAX_GAUSSIANS), GAUSSIAN_WIDTH))
    splats = _on_host(splats)
    check_range(name, splats)
    check_range(f"{name} opacity", splats[:, GAUSSIAN_COLUMNS["opacity"]], 0.0, 1.0)
    check_range(f"{name} scale", splats[:, GAUSSIAN_COLUMNS["scale"]], 0.0, LARGEST)


def _on_host(values: "np.ndarray | Tensor") -> np.ndarray:
    """An array to look at: the values, or of a tensor [N, ...] on a device the smallest and largest of each column.

    NaN is both of them.
    """
    if isinstance(values, np.ndarray) or values.device.type == "cpu":
        return np.asarray(values)
    import torch

    from diffsplat.backends.transfer import to_host

    extremes = torch.stack([values.amin(dim=0), values.amax(dim=0)]) if len(values) else values
    return np.asarray(to_host(extremes))
