"""Names shared by the whole export room."""

from collections.abc import Callable
from typing import Literal

from diffsplat_client.contract import MODELS, RECONSTRUCT, RECONSTRUCTION

from diffsplat.bundle import Bundle
from diffsplat.weights import holds_network

RuntimeChoice = Literal["auto", "onnxruntime", "torch"]
ProgressCallback = Callable[[str, int, int], None]  # (present step, steps done, total steps)

VERSION = "1"  # version folder of every model


class ExportError(ValueError):
    """A graph, repository or checkpoint cannot be exported or imported; the message names it and the reason."""


def served_stages(bundle: Bundle) -> tuple[str, ...]:
    """The models that serve a bundle: all of them, except reconstruction for a bundle without a GSRecon."""
    left_out = () if holds_network(bundle.files, "gsrecon") else (RECONSTRUCT, RECONSTRUCTION)
    return tuple(stage for stage in MODELS if stage not in left_out)
