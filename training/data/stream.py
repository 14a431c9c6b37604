"""An endless, resumable walk over a data set, in batches, divided among ranks and prepared ahead by threads.

The order is a pure function of (seed, epoch, position), and so are the draws inside a sample: resuming needs the cursor
alone, the ranks of a run see disjoint parts of one global batch, and the batches do not depend on the number of
threads. Decoding images and casting rays release the interpreter's lock.
"""

import functools
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from training.data.record import BrokenRecord
from training.data.sample import Batch, Sample, collate

_ORDER_STREAM, _SAMPLE_STREAM, _REPLACEMENT_STREAM = 21, 22, 23
_SHUFFLED_BLOCKS = 8  # blocks whose objects are shuffled together
_MAX_REPLACEMENTS = 100


class SampleSource(Protocol):
    """A data set with random access, for several threads."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """Object `index`, every choice drawn from `rng`.

        Raises:
            BrokenRecord: the object cannot be read.
        """
        ...


class BatchStream:
    """Iterator of `Batch`; each epoch is a new permutation, its incomplete last global batch is left out.

    Args:
        source: The data set.
        batch_size: Objects per batch on this rank.
        seed: Order and draws.
        rank: This process, in [0, world_size).
        world_size: Number of processes.
        workers: Threads that prepare batches ahead; 0: each batch is prepared when it is asked for.
        prefetch: Batches prepared ahead.
        skip_broken: Replace objects that cannot be read by others, drawn at random, and note them in `broken`.
        blocks: Objects that are cheap to read together; an epoch goes through the blocks in random order and shuffles
            only the objects of a few of them. Without it, all objects are shuffled.

    Raises:
        ValueError: the data set is smaller than one global batch, or `rank` is out of range.
    """

    def __init__(
        self,
        source: SampleSource,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        workers: int = 0,
        prefetch: int = 2,
        skip_broken: bool = False,
        blocks: Sequence[range] | None = None,
    ) -> None:
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
        self.broken: dict[int, str] = {}  # objects that could not be read, and why
        self._skip_broken = skip_broken
        self._blocks = blocks
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)
        self._ahead: deque[list[Future[Sample]]] = deque()  # the next batches
        self._prefetch = prefetch
        self._pool = ThreadPoolExecutor(workers, "data") if workers else None

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return len(self.source) // (self.batch_size * self.world_size)

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Batch:
        if self._pool is None:
            samples = [self._sample(self.epoch, index) for index in self._objects(self.epoch, self.position)]
        else:
            self._prepare_ahead(self._pool)
            samples = [future.result() for future in self._ahead[0]]
            self._ahead.popleft()
        self.epoch, self.position = self._after(self.epoch, self.position)
        return self.collate(samples)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples as one batch."""
        return collate(samples)

    def state_dict(self) -> dict[str, int]:
        """The cursor, the same on every rank, with what it is valid for; batches prepared ahead are not part of it."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` was taken.

        Raises:
            ValueError: the cursor belongs to another order (seed, size of the data set, global batch).
        """
        for field, value in self._identity().items():
            if state[field] != value:
                raise ValueError(f"cursor has {field} = {state[field]}, this stream has {value}")
        self._ahead.clear()
        self.epoch, self.position = state["epoch"], state["position"]

    def _prepare_ahead(self, pool: ThreadPoolExecutor) -> None:
        """Keep `prefetch` batches beyond the next one in work."""
        epoch, position = self.epoch, self.position
        for ahead in range(self._prefetch + 1):
            if ahead == len(self._ahead):
                objects = self._objects(epoch, position)
                self._ahead.append([pool.submit(self._sample, epoch, index) for index in objects])
            epoch, position = self._after(epoch, position)

    def _after(self, epoch: int, position: int) -> tuple[int, int]:
        return (epoch, position + 1) if position + 1 < self.batches_per_epoch else (epoch + 1, 0)

    def _objects(self, epoch: int, position: int) -> list[int]:
        """Objects of this rank's batch."""
        start = (position * self.world_size + self.rank) * self.batch_size
        return self._order(epoch)[start : start + self.batch_size].tolist()

    def _draw_order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, _ORDER_STREAM, epoch])
        if self._blocks is None:
            return rng.permutation(len(self.source))
        blocks = [self._blocks[block] for block in rng.permutation(len(self._blocks))]
        windows = [blocks[start : start + _SHUFFLED_BLOCKS] for start in range(0, len(blocks), _SHUFFLED_BLOCKS)]
        return np.concatenate([rng.permutation(np.concatenate(window)) for window in windows])

    def _sample(self, epoch: int, index: int) -> Sample:
        try:
            return self.source.sample(index, np.random.default_rng([self.seed, _SAMPLE_STREAM, epoch, index]))
        except BrokenRecord as error:
            if not self._skip_broken:
                raise BrokenRecord(f"{error}; data.skip_broken replaces such objects") from error
            self._note_broken(index, error)
        others = np.random.default_rng([self.seed, _REPLACEMENT_STREAM, epoch, index])
        for _ in range(_MAX_REPLACEMENTS):
            other = int(others.integers(len(self.source)))
            try:
                return self.source.sample(other, others)
            except BrokenRecord as error:
                self._note_broken(other, error)
                last = error
        raise BrokenRecord(f"{_MAX_REPLACEMENTS} objects in a row cannot be read; the last: {last}")

    def _note_broken(self, index: int, error: BrokenRecord) -> None:
        if index not in self.broken:
            self.broken[index] = str(error)
            print(f"broken object {len(self.broken)}, replaced: {error}", file=sys.stderr)

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "objects": len(self.source),
            "global_batch": self.batch_size * self.world_size,
        }
