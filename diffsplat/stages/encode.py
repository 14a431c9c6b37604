"""`encode`: a client's request -> the same with all defaults filled in, and its encoded texts and images."""

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

from diffsplat_client.contract import DRAWN_SEED_LIMIT
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest
from diffsplat_client.request_checks import short

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.backends.transfer import call_from_host
from diffsplat.bundle import Bundle, tokenizer_files
from diffsplat.export_record import ExportRecord
from diffsplat.graph import Graph, Precision
from diffsplat.integrity import BundleError
from diffsplat.runtime import bundle_graphs, load_graphs
from diffsplat.sampling.blob_start import kept_steps
from diffsplat.stages.envelope import Deadlines, Envelope
from diffsplat.stages.images import ImageEncoderStage
from diffsplat.stages.work import DenoiseWork
from diffsplat.text.features import PromptEncoder
from diffsplat.text.tokenizer import Tokenizer


class EncodeStage:
    """Fills in the defaults of a request and encodes its texts and images; features lie on the host."""

    def __init__(self, spec: BackboneSpec, graphs: Mapping[str, Graph], tokenizers: Sequence[Tokenizer]) -> None:
        """`graphs`: those of `encode_graphs`, by name."""
        self.spec = spec
        texts = [partial(call_from_host, graphs[name]) for name in spec.text.numbered(TEXT_ENCODER)]
        self.prompts = PromptEncoder(spec.text, tokenizers, texts)
        self.images = ImageEncoderStage(spec, graphs)

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], threads: int | None = None, device: str | None = None
    ) -> "EncodeStage":
        """From a version folder: see `runtime.load_graphs`."""
        spec = ExportRecord.read(folder).spec
        graphs = load_graphs(folder, encode_graphs(spec), threads, device)
        return cls(spec, graphs, _tokenizers(spec, Path(folder)))

    @classmethod
    def from_bundle(cls, bundle: Bundle, precision: Precision = "fp32") -> "EncodeStage":
        """Straight from a bundle, run by torch."""
        graphs = bundle_graphs(bundle, encode_graphs(bundle.spec), precision)
        return cls(bundle.spec, graphs, _tokenizers(bundle.spec, bundle.root))

    def run(self, request: GenerationRequest) -> DenoiseWork:
        """Encode one request. InvalidRequestError names the bad field, its value and what is allowed."""
        started, arrived_s = perf_counter(), time.monotonic()
        looked_at = self.images.run(request.validate())
        request = self.resolve(looked_at.request)
        features, prompt_warnings, unread = self.prompts.encode([request.prompt, request.negative_prompt or None])
        if unread[0]:
            raise InvalidRequestError(
                f"prompt = {short(request.prompt)}: must contain a word that the text encoder reads"
            )
        fields = zip(("prompt", "negative_prompt"), prompt_warnings, strict=True)
        warnings = tuple(f"{field}: {warning}" for field, texts in fields for warning in texts)
        deadlines = Deadlines.of(request, arrived_s)
        envelope = Envelope(request, (*looked_at.warnings, *warnings), deadlines=deadlines)
        timed = envelope.with_timing("encode", (perf_counter() - started) * 1e3)
        return DenoiseWork(timed, features, looked_at.features)

    def warm_up(self) -> None:
        """Run every graph once."""
        self.prompts.encode(["warm up", None])
        self.images.warm_up()

    def resolve(self, request: GenerationRequest) -> GenerationRequest:
        """The request with every open field filled from the bundle, and a seed drawn if it names none.

        InvalidRequestError for options that the bundle does not have; the fields must have been validated.
        """
        request = request.with_defaults(**self.spec.request_defaults, seed=secrets.randbelow(DRAWN_SEED_LIMIT))
        check_request(request, self.spec)
        return request


def encode_graphs(spec: BackboneSpec) -> tuple[str, ...]:
    """Graphs of this stage."""
    images = (("image_encoder", spec.image_encoder), ("elevest", spec.elevest is not None))
    return (*spec.text.numbered(TEXT_ENCODER), *(name for name, is_there in images if is_there))


def _tokenizers(spec: BackboneSpec, folder: Path) -> list[Tokenizer]:
    """The tokenizer of each text encoder; BundleError names a missing file."""
    tokenizers = []
    for name, encoder in zip(tokenizer_files(spec), spec.text.encoders, strict=True):
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name}: missing")
        tokenizers.append(Tokenizer.for_encoder(folder / name, encoder))
    return tokenizers


def check_request(request: GenerationRequest, spec: BackboneSpec) -> None:
    """Refuse schedulers, ControlNets and late starts that the served bundle does not have."""
    if request.scheduler not in spec.schedule.schedulers:
        allowed = ", ".join(spec.schedule.schedulers)
        raise InvalidRequestError(
            f"scheduler = {request.scheduler!r}: must be one of {allowed} for the bundle {spec.name!r}"
        )
    if request.control_type is not None and request.control_type not in spec.controls:
        loaded = ", ".join(spec.controls) or "none"
        raise InvalidRequestError(
            f"control_type = {request.control_type!r}: the bundle {spec.name!r} has the ControlNets: {loaded}"
        )
    assert request.steps is not None
    if request.has_blob_start and kept_steps(request.steps, request.init_noise_strength) < 1:
        raise InvalidRequestError(
            f"init_noise_strength = {request.init_noise_strength}: keeps none of {request.steps} steps, "
            f"must be in {1 / request.steps:g} .. 1"
        )
