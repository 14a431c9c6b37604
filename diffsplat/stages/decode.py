"""`decode`: latents -> splats of one object, on the device of the decoder."""

import os
from typing import NamedTuple

import torch
from diffsplat_client.output_options import OutputOptions
from diffsplat_client.request import GenerationRequest
from torch import Tensor

from diffsplat.backbones import BackboneSpec, SplatGeometry
from diffsplat.backends.transfer import to_device, to_host
from diffsplat.bundle import Bundle
from diffsplat.export_record import ExportRecord
from diffsplat.geometry.cameras import Cameras, generated_view_cameras
from diffsplat.geometry.gaussians import canonicalize, grid_to_gaussians, to_array
from diffsplat.graph import Graph, Precision
from diffsplat.networks import DECODER
from diffsplat.runtime import bundle_graphs, load_graph
from diffsplat.stages.checks import check_range, check_shape
from diffsplat.stages.envelope import Envelope
from diffsplat.stages.errors import NotFiniteError


class DecodeResult(NamedTuple):
    """All splats of one object, before any opacity threshold."""

    splats: Tensor  # [N, 14] float32, columns of contract.GAUSSIAN_COLUMNS; unit quaternions
    raw_splats: Tensor | None = None  # [N, 14] the same before canonicalisation, for formats `as_decoded`


class DecodeStage:
    """Decodes all views as one batch, lifts their pixels into the world and canonicalises them, once per object."""

    def __init__(self, spec: BackboneSpec, decoder: Graph) -> None:
        self.spec = spec
        self.decoder = decoder

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], threads: int | None = None, device: str | None = None, name: str = DECODER
    ) -> "DecodeStage":
        """From a version folder: see `runtime.load_graphs`. `name`: of the decoder's graph."""
        return cls(ExportRecord.read(folder).spec, load_graph(folder, name, threads, device))

    @classmethod
    def from_bundle(cls, bundle: Bundle, precision: Precision = "fp32") -> "DecodeStage":
        """Straight from a bundle, run by torch."""
        return cls(bundle.spec, bundle_graphs(bundle, [DECODER], precision)[DECODER])

    def warm_up(self) -> None:
        """Latents of zeros."""
        spec = self.spec
        defaults = {**spec.request_defaults, "elevation_deg": 0.0, "seed": 0}
        latents = torch.zeros(spec.geometry.views, spec.latent_channels, spec.latent_size, spec.latent_size)
        self.run(latents, Envelope(GenerationRequest("warm up").with_defaults(**defaults)))

    def run(self, latents: Tensor, envelope: Envelope) -> DecodeResult:
        """Decode [V, C, h, w] of any device.

        Raises:
            InvalidRequestError: a wrong shape, or values that no latent has.
            NotFiniteError: the decoder's numbers left the range of its precision.
        """
        spec, request = self.spec, envelope.request
        assert request.elevation_deg is not None and request.distance is not None
        check_shape("LATENTS", latents, (spec.geometry.views, spec.latent_channels, spec.latent_size, spec.latent_size))
        latents = to_device(latents, self.decoder.device)
        check_range("LATENTS", latents)
        grid = self.decoder(latents[None])  # [1, V, 12, H, W]
        if int(to_host(torch.isnan(grid).sum())):  # the clamp at the end of the decoder lets only NaN through
            raise NotFiniteError(
                f"decode gave splats that are not numbers (graph {self.decoder.name}, {self.decoder.backend} in "
                f"{self.decoder.precision}): a bundle exported in a precision with a larger range may help"
            )
        cameras = generated_view_cameras(request.elevation_deg, request.distance, spec.geometry.views)
        return splats_of(grid, cameras, spec.geometry, request)


@torch.no_grad()
def splats_of(grid: Tensor, cameras: Cameras, geometry: SplatGeometry, request: OutputOptions) -> DecodeResult:
    """Lift one object's grid [1, V, 12, H, W] into the world; raw splats are kept where the formats need them.

    In float32, whatever the precision of the graph that made the grid, and on its device. `cameras` lie on the host.
    """
    cameras = Cameras(*(to_device(values, grid.device) for values in cameras))
    gaussians = grid_to_gaussians(grid.float(), cameras, geometry)
    splats = to_array(canonicalize(gaussians, geometry))
    as_decoded = any(format.as_decoded for format in request.file_formats)
    return DecodeResult(splats, to_array(gaussians) if as_decoded else None)
