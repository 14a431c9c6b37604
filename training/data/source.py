"""What a data set is to training: objects with views, cameras and captions, whatever they are stored in."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from diffsplat.backbones import SplatGeometry
from training.config.common import Data
from training.data.open_path import open_records
from training.data.procedural.source import ProceduralSource
from training.data.procedural.synthetic_config import CONFIGS
from training.data.record import PackedViews
from training.data.rendered import RenderedSource
from training.data.views import ViewLayout

VALIDATION_INDEX = 1_000_000  # validation objects start here in the procedural series; training never gets this far


class ObjectSource(Protocol):
    """Objects by number; read by several threads at once."""

    layout: ViewLayout

    def __len__(self) -> int: ...

    def provides(self) -> frozenset[str]:
        """Maps that the objects have (`record.MAP_SUFFIXES`), and "caption" if they have captions."""
        ...

    def prepare(self) -> None:
        """Compute what `views` reads, with the time left, if it is not there; `views` does so too, without notice."""
        ...

    def uid(self, index: int) -> str:
        """The object's id, unique in the source."""
        ...

    def caption(self, index: int, rng: np.random.Generator | None) -> str:
        """One of the object's captions, drawn from `rng`; without it the plainest. Empty if there are none."""
        ...

    def usable_views(self, index: int) -> tuple[int, ...]:
        """Views that have an image and a camera.

        Raises:
            BrokenRecord: the object cannot be read; so do `caption` and `views`.
        """
        ...

    def views(self, index: int, view_ids: Sequence[int]) -> PackedViews:
        """The given views at training resolution and record precision, in the given order."""
        ...

    def blocks(self) -> Sequence[range] | None:
        """Objects that are cheap to read together, as ranges that cover all; None if each is as cheap alone."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON facts that decide what the source holds: for lineage and as the key of what is computed from it."""
        ...


def open_source(data: Data, geometry: SplatGeometry, validation: bool) -> ObjectSource:
    """The objects to train on, or those held out for validation.

    Raises:
        ValueError: `data.source` is neither "procedural" nor a path that holds objects, or a field does not fit it.
    """
    if data.source == "procedural":
        source = ProceduralSource(
            data.seed,
            data.validation_objects if validation else data.objects,
            geometry.grid_size,
            num_input_views=geometry.views,
            first_views=data.first_views,
            pool_size=data.pool_size,
            first_index=VALIDATION_INDEX if validation else 0,
            config=CONFIGS[data.grammar],
        )
        if not data.store_views:
            return source
        return RenderedSource(source, data.cache, threads=len(os.sched_getaffinity(0)))
    return open_records(data, None if data.compat else geometry.grid_size, validation)


def require(source: ObjectSource, needs: frozenset[str], stage: str, name: str) -> None:
    """Check that a source has what a stage needs.

    Raises:
        ValueError: something is missing; the message names stage, source and what is missing.
    """
    missing = sorted(needs - source.provides())
    if missing:
        raise ValueError(
            f"stage {stage} needs {', '.join(missing)} of every object, but data.source = {name!r} has only "
            f"{', '.join(sorted(source.provides()))}"
            + ("; give captions with data.captions" if missing == ["caption"] else "")
        )
