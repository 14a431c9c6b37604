"""Reconstruction: the result for views of an object."""

from dataclasses import dataclass, field

import numpy as np

from diffsplat_client.cloud import SplatCloud
from diffsplat_client.generation import Served, parse_output
from diffsplat_client.reconstruction_request import ReconstructionRequest


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """One finished object; the fields of Generation except those of the denoiser."""

    request: ReconstructionRequest
    request_id: str
    cloud: SplatCloud
    frames: np.ndarray | None  # uint8 [F, H, W, 3], one per row of `request.frame_poses`
    assets: dict[str, bytes]  # by format: complete files, those of `request.formats` but "raw"
    timings_ms: dict[str, float] = field(default_factory=dict)  # milliseconds by stage; "total": as this client saw it
    served: Served | None = None  # None from a server of an older release


def parse_reconstruction(
    tensors: dict[str, np.ndarray], request: ReconstructionRequest, request_id: str, started: float
) -> Reconstruction:
    """Build the result from the tensors of the response; ServerError when they break the contract."""
    return Reconstruction(request, request_id, *parse_output(tensors, request, started))
