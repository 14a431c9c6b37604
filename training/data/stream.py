"""An endless, resumable walk over a data set, in batches, divided among ranks.

The order is a pure function of (seed, epoch, position), and so are the draws inside a sample: resuming needs the cursor
alone, and the ranks of a run see disjoint parts of one global batch.
"""

from typing import Protocol

import numpy as np

from training.data.sample import Batch, Sample, collate

_ORDER_STREAM, _SAMPLE_STREAM = 21, 22


class SampleSource(Protocol):
    """A data set with random access."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Object `index`, every choice drawn from `rng`."""
        ...


class BatchStream:
    """Iterator of `Batch`; each epoch is a new permutation, its incomplete last global batch is left out.

    Args:
        source: The data set.
        batch_size: Objects per batch on this rank.
        seed: Order and draws.
        rank: This process, in [0, world_size).
        world_size: Number of processes.

    Raises:
        ValueError: the data set is smaller than one global batch, or `rank` is out of range.
    """

    def __init__(self, source: SampleSource, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank = {rank} must lie in [0, world_size = {world_size})")
        if batch_size < 1 or len(source) < batch_size * world_size:
            raise ValueError(
                f"batch_size = {batch_size} must lie in [1, {len(source) // world_size}]: "
                f"{len(source)} objects over {world_size} processes"
            )
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = 0  # global batches of this epoch handed out already

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return len(self.source) // (self.batch_size * self.world_size)

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Batch:
        order = np.random.default_rng([self.seed, _ORDER_STREAM, self.epoch]).permutation(len(self.source))
        start = (self.position * self.world_size + self.rank) * self.batch_size
        batch = collate([self._sample(int(index)) for index in order[start : start + self.batch_size]])
        self.position += 1
        if self.position == self.batches_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        return batch

    def _sample(self, index: int) -> Sample:
        return self.source.sample(index, np.random.default_rng([self.seed, _SAMPLE_STREAM, self.epoch, index]))

    def state_dict(self) -> dict[str, int]:
        """The cursor, the same on every rank, with what it is valid for."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the cursor belongs to another order (seed, size of the data set, global batch).
        """
        for field, value in self._identity().items():
            if state[field] != value:
                raise ValueError(f"cursor has {field} = {state[field]}, this stream has {value}")
        self.epoch, self.position = state["epoch"], state["position"]

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "objects": len(self.source),
            "global_batch": self.batch_size * self.world_size,
        }
