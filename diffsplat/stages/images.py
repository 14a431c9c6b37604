"""Images of a request, in `encode`: condition image, control map, elevation, Instant3D's start."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest
from torch import Tensor, ones, stack

from diffsplat.backbones import BackboneSpec
from diffsplat.backends.transfer import call_from_host
from diffsplat.graph import Graph
from diffsplat.images.background import BackgroundRemover, load_background_remover
from diffsplat.images.decode_file import read_image
from diffsplat.images.prepare import (
    CONTROL_IMAGE,
    ELEVATION_INPUT_SIZE,
    elevation_input,
    prepare_control_map,
    prepare_image,
)
from diffsplat.sampling.blob_start import blob_views
from diffsplat.stages.image_features import ImageFeatures


class Images(NamedTuple):
    """A request after its images were prepared and encoded."""

    request: GenerationRequest  # elevation filled in
    features: ImageFeatures
    warnings: tuple[str, ...]


class ImageEncoderStage:
    """The image half of `encode`.

    Args:
        spec: what the bundle can do.
        graphs: `image_encoder` and `elevest`, those that it has.
    """

    def __init__(self, spec: BackboneSpec, graphs: Mapping[str, Graph]) -> None:
        self.spec = spec
        self.graphs = graphs
        self._remover: BackgroundRemover | None = None
        # ElevEst's defaults without its module, which a served graph does not need
        self._elevation_size = (spec.elevest or {}).get("input_size", ELEVATION_INPUT_SIZE)

    def run(self, request: GenerationRequest) -> Images:
        """Check combinations, prepare and encode. InvalidRequestError names field, value and what is allowed."""
        self._check(request)
        features = ImageFeatures()
        warnings: tuple[str, ...] = ()
        remover = self._background_remover() if request.remove_background else None
        size = self.spec.image_size
        if request.image is not None:
            image = prepare_image(request.image, size, remover, request.border_ratio)
            mean, _ = self._run("image_encoder", image.rgb[None])
            features, warnings = ImageFeatures(condition_latents=mean[0]), image.notes
            request = self._with_elevation(request, image.rgb)
        elif request.control_image is not None:
            decoded = read_image(request.control_image, CONTROL_IMAGE)
            control = prepare_control_map(
                decoded, self.spec.hint_size, request.extract_canny, remover, request.border_ratio
            )
            features, warnings = ImageFeatures(hint=control.hint), control.notes
            if request.estimate_elevation:
                photo = control.prepared
                if photo.rgb.shape[-1] != size:  # canny's edges are found at another size
                    photo = prepare_image(decoded, size, remover, request.border_ratio, CONTROL_IMAGE)
                request = self._with_elevation(request, photo.rgb)
        if request.has_blob_start:
            mean, std = self._run("image_encoder", blob_views(size, request.init_std, request.init_background))
            # unlike a condition image's, these latents are denoised: they are shifted as the denoiser's own
            features = features._replace(start_moments=stack([mean - self.spec.scaled_shift, std]))
        return Images(request, features, warnings)

    def warm_up(self) -> None:
        """Run every graph once."""
        white = ones(1, 3, self.spec.image_size, self.spec.image_size)
        if self.spec.image_encoder:
            self._run("image_encoder", white)
        if self.spec.elevest is not None:
            self._run("elevest", elevation_input(white, self._elevation_size))

    def _check(self, request: GenerationRequest) -> None:
        spec = self.spec
        if spec.is_image_conditioned and request.image is None:
            raise InvalidRequestError(f"image is missing: the bundle {spec.name!r} is conditioned on an image")
        if not spec.is_image_conditioned and request.image is not None:
            raise InvalidRequestError(f"image is given: the bundle {spec.name!r} is conditioned on text alone")
        if request.has_blob_start and not spec.image_encoder:
            raise InvalidRequestError(
                f"init_std = {request.init_std}: must be 0, the bundle {spec.name!r} has no image encoder"
            )
        if request.estimate_elevation and spec.elevest is None:
            raise InvalidRequestError(f"estimate_elevation = True: the bundle {spec.name!r} has no elevation estimator")
        if request.elevation_deg is None and not request.estimate_elevation and spec.elevation_deg is None:
            raise InvalidRequestError(
                f"elevation_deg is open: the bundle {spec.name!r} needs it, or estimate_elevation"
            )

    def _with_elevation(self, request: GenerationRequest, rgb: Tensor) -> GenerationRequest:
        """The request with the elevation estimated from an image [3, H, W] in [0, 1], if it asks for that."""
        if not request.estimate_elevation:
            return request
        elevation_deg = float(self._run("elevest", elevation_input(rgb[None], self._elevation_size))[0])
        return dataclasses.replace(request, elevation_deg=elevation_deg, estimate_elevation=False)

    def _run(self, graph: str, images: Tensor) -> Any:
        return call_from_host(self.graphs[graph], images)

    def _background_remover(self) -> BackgroundRemover:
        """Loaded when the first request asks for it."""
        if self._remover is None:
            self._remover = load_background_remover()
        return self._remover
