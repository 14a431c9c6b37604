"""Where the noise of a request comes from."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Standard normal noise, drawn in the order that the published pipelines draw it."""

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next tensor of that shape, float32 on the CPU."""


class SeededNoise:
    """Noise of a CPU generator of its own, so that a request is reproducible whatever runs beside it."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, shape: Sequence[int]) -> Tensor:
        """The next tensor of that shape, float32 on the CPU."""
        return torch.randn(tuple(shape), generator=self._generator)
