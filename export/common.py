"""Names that all of the export room shares."""

from collections.abc import Callable
from typing import Literal

from diffsplat_client.contract import MODELS, RECONSTRUCT, RECONSTRUCTION

from diffsplat.bundle import Bundle
from diffsplat.weights import holds_network

RuntimeChoice = Literal["auto", "onnxruntime", "torch"]
ProgressCallback = Callable[[str, int, int], None]  # (what is done now, steps done, steps in all)

VERSION = "1"  # version folder of every model


class ExportError(ValueError):
    """A graph or a repository cannot be exported; the message says which and why."""


def served_stages(bundle: Bundle) -> tuple[str, ...]:
    """The models that a bundle is served by: all, but those for views only where it has a GSRecon."""
    left_out = () if holds_network(bundle.files, "gsrecon") else (RECONSTRUCT, RECONSTRUCTION)
    return tuple(stage for stage in MODELS if stage not in left_out)
