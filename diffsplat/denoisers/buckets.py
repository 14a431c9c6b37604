"""Sizes to which the batches of a step are padded on CUDA, so that CUDA graphs and engines see few shapes.

Real rows come first; padding repeats the first row, and nothing reads what becomes of it. On the CPU a batch keeps its
size: there every row costs time.
"""

from dataclasses import dataclass

SMALLEST_TOKENS = 32  # shorter texts share a bucket: their keys cost next to nothing


@dataclass(frozen=True)
class Buckets:
    """Buckets of one denoiser.

    Attributes:
        max_rows: the largest batch of the step graph: two rows for each request, one of them unconditional.
        max_tokens: the longest text.
    """

    max_rows: int
    max_tokens: int

    @property
    def rows(self) -> tuple[int, ...]:
        """Every number of rows, growing: 1, 2, 4 ... `max_rows`."""
        return _doubling(1, self.max_rows)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every number of text tokens where texts of different lengths share a batch: 32, 64 ... `max_tokens`."""
        return _doubling(SMALLEST_TOKENS, self.max_tokens)

    def pad_rows(self, rows: int) -> int:
        """The bucket of a batch; ValueError above `max_rows`."""
        return _fit("rows", rows, self.rows)

    def pad_tokens(self, tokens: int) -> int:
        """The bucket of a text; ValueError above `max_tokens`."""
        return _fit("tokens", tokens, self.tokens)


def _doubling(first: int, last: int) -> tuple[int, ...]:
    sizes = [first]
    while sizes[-1] * 2 < last:
        sizes.append(sizes[-1] * 2)
    return (*(size for size in sizes if size < last), last)


def _fit(name: str, size: int, buckets: tuple[int, ...]) -> int:
    for bucket in buckets:
        if size <= bucket:
            return bucket
    raise ValueError(f"{size} {name} in a batch of the denoiser: at most {buckets[-1]} were prepared for")
