"""Names shared by the whole export room."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from diffsplat_client.contract import MODELS, RECONSTRUCT, RECONSTRUCTION

from diffsplat.bundle import Bundle
from diffsplat.graph import Backend, Precision
from diffsplat.weights import holds_network

BackendChoice = Literal["auto", "all"] | Backend
PrecisionChoice = Literal["auto"] | Precision
ProgressCallback = Callable[[str, int, int], None]  # (present step, steps done, total steps)

VERSION = "1"  # of a repository that was not refreshed, and of the templates


@dataclass(frozen=True)
class BuildOptions:
    """What narrows the candidates of every graph.

    Attributes:
        backend: one back end; "auto" tries those that build within seconds, "all" also the others.
        device: "cpu", "cuda" or "cuda:N".
        precision: what graphs compute in, except those that must stay in float32; "auto" lets fp32 and bf16 compete.
    """

    backend: BackendChoice = "auto"
    device: str = "cpu"
    precision: PrecisionChoice = "fp32"


class ExportError(ValueError):
    """A graph, repository or checkpoint cannot be exported or imported; the message names it and the reason."""


def served_stages(bundle: Bundle) -> tuple[str, ...]:
    """The models that serve a bundle: all of them, except reconstruction for a bundle without a GSRecon."""
    left_out = () if holds_network(bundle.files, "gsrecon") else (RECONSTRUCT, RECONSTRUCTION)
    return tuple(stage for stage in MODELS if stage not in left_out)
