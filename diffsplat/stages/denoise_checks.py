"""What `denoise` refuses before a request is queued. All tensors lie on the host."""

from diffsplat_client.errors import InvalidRequestError

from diffsplat.backbones import BackboneSpec
from diffsplat.stages.checks import check_range, check_shape
from diffsplat.stages.encode import check_request
from diffsplat.stages.work import DenoiseWork


def check_work(work: DenoiseWork, spec: BackboneSpec) -> None:
    """InvalidRequestError names tensor, value and what is allowed."""
    check_request(work.envelope.request, spec)
    text, (embeddings, mask, pooled) = spec.text, work.text
    check_shape("TEXT_EMBEDDINGS", embeddings, (2, (1, text.tokens), text.width))
    check_range("TEXT_EMBEDDINGS", embeddings)
    check_shape("TEXT_MASK", mask, (2, embeddings.shape[1]))
    if not bool(mask.any(dim=1).all()):
        raise InvalidRequestError("TEXT_MASK: every row must keep at least one token")
    check_shape("POOLED_TEXT", pooled, (2, text.pooled_width))
    check_range("POOLED_TEXT", pooled)
    _check_images(work, spec)


def _check_images(work: DenoiseWork, spec: BackboneSpec) -> None:
    request = work.envelope.request
    latents = (spec.latent_channels, spec.latent_size, spec.latent_size)
    wanted = {
        "CONDITION_LATENTS": (work.images.condition_latents, spec.is_image_conditioned, latents),
        "HINT": (work.images.hint, request.control_type is not None, (3, spec.hint_size, spec.hint_size)),
        "START_MOMENTS": (work.images.start_moments, request.has_blob_start, (2, spec.geometry.views, *latents)),
    }
    for name, (values, is_wanted, shape) in wanted.items():
        if (values is not None) != is_wanted:
            raise InvalidRequestError(f"{name} is {'missing' if is_wanted else 'given, but nothing asks for it'}")
        if values is not None:
            check_shape(name, values, shape)
            check_range(name, values)
