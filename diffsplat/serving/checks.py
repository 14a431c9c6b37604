"""What every stage checks about tensors that reach it: the stages of a server can all be called directly."""

from collections.abc import Sequence

import torch
from diffsplat_client.errors import InvalidRequestError
from torch import Tensor


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | tuple[int, int]]) -> None:
    """Refuse a tensor whose sizes differ from `expected`, numbers or (smallest, largest) pairs."""
    ranges = [(size, size) if isinstance(size, int) else size for size in expected]
    shape = list(tensor.shape)
    if len(shape) != len(ranges) or any(
        not low <= size <= high for size, (low, high) in zip(shape, ranges, strict=True)
    ):
        allowed = ", ".join(str(low) if low == high else f"{low} .. {high}" for low, high in ranges)
        raise InvalidRequestError(f"{name} has shape {shape}: must be [{allowed}]")


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity."""
    if not bool(torch.isfinite(tensor).all()):
        bad = tensor[~torch.isfinite(tensor)][0].item()
        raise InvalidRequestError(f"{name} holds {bad}: all values must be finite")


def check_range(name: str, tensor: Tensor, low: float, high: float) -> None:
    """Refuse values outside of low .. high."""
    if tensor.numel() and not (low <= tensor.min().item() and tensor.max().item() <= high):
        bad = tensor[(tensor < low) | (tensor > high)][0].item()
        raise InvalidRequestError(f"{name} holds {bad:g}: all values must be in {low:g} .. {high:g}")
