"""What the loop asks of a stage of training: networks, data, loss, evaluation, export."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn


class Stream(Protocol):
    """Endless batches of this rank, with a cursor."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches that each rank takes in one pass over the objects."""
        ...

    def __next__(self) -> Any: ...

    def state_dict(self) -> dict[str, int]:
        """The cursor."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a cursor."""
        ...


class Evaluation(NamedTuple):
    """Scalars and panels of one evaluation on fixed objects."""

    scalars: dict[str, float]
    panels: dict[str, np.ndarray]  # name -> uint8 image [H, W, 3]


class Stage(Protocol):
    """A stage of training: `build` once, `loss` at every step, `evaluate` now and then, `export` at the end."""

    name: str
    updates: int  # so far; set by the loop before each loss: some terms grow over the first steps
    device: torch.device  # where networks and batches belong; set by the loop before `build`

    def build(self) -> nn.Module:
        """Build the networks and return the trained ones as one module."""
        ...

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser, trained parameters only."""
        ...

    def stream(self, rank: int, world_size: int) -> Stream:
        """Training batches."""
        ...

    def validation_batch(self) -> Any:
        """Fixed objects that training never uses."""
        ...

    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and scalars to log; all noise comes from `generator`."""
        ...

    def evaluate(self, batch: Any, generator: torch.Generator) -> Evaluation:
        """Quality on a batch, with the current weights."""
        ...

    def export(self, out: Path, facts: dict[str, Any]) -> None:
        """Write the files that later stages and the bundle read, with the current weights."""
        ...
