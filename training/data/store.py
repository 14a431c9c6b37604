"""Where records lie: the interface of stores.

A store gives the bytes of a record's parts and knows nothing about images. Stores are read by several threads at once.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """Records by number."""

    kind: str  # for messages and lineage
    path: Path

    def __len__(self) -> int: ...

    def uid(self, index: int) -> str:
        """The object's id."""
        ...

    def parts(self, index: int) -> Collection[str]:
        """Names of the record's parts.

        Raises:
            BrokenRecord: the record cannot be read.
        """
        ...

    def read(self, index: int, names: Sequence[str]) -> dict[str, bytes]:
        """Those of the named parts that the record has.

        Raises:
            BrokenRecord: the record cannot be read.
        """
        ...

    def blocks(self) -> Sequence[range] | None:
        """Records that are cheap to read together, as ranges that cover all; None if every record is as cheap alone."""
        ...
