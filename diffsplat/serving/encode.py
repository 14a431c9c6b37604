"""`encode`: a client's request -> a request without open defaults, and the text that the denoiser reads."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.bundle import Bundle, BundleError, tokenizer_files
from diffsplat.runtime import ExportRecord, Graph, bundle_graph, load_graph
from diffsplat.serving.envelope import Envelope
from diffsplat.text_features import PromptEncoder, TextFeatures
from diffsplat.tokenizer import Tokenizer

DRAWN_SEED_LIMIT = 2**32  # short enough to be typed again


class EncodeResult(NamedTuple):
    """What `denoise` needs."""

    envelope: Envelope
    text: TextFeatures  # two rows: prompt, negative prompt


class EncodeStage:
    """Fills in what a request leaves open and encodes its texts."""

    def __init__(self, spec: BackboneSpec, text_encoders: Sequence[Graph], tokenizers: Sequence[Tokenizer]) -> None:
        self.spec = spec
        self.prompts = PromptEncoder(spec.text, tokenizers, text_encoders)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], threads: int | None = None) -> "EncodeStage":
        """From a version folder. BundleError names a file that is missing or damaged."""
        spec = ExportRecord.read(folder).spec
        graphs = [load_graph(folder, name, threads) for name in spec.text.numbered(TEXT_ENCODER)]
        return cls(spec, graphs, _tokenizers(spec, Path(folder)))

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "EncodeStage":
        """Straight from a bundle, run by torch."""
        graphs = [bundle_graph(bundle, name) for name in bundle.spec.text.numbered(TEXT_ENCODER)]
        return cls(bundle.spec, graphs, _tokenizers(bundle.spec, bundle.root))

    def run(self, request: GenerationRequest) -> EncodeResult:
        """Encode one request. InvalidRequestError names the bad field, its value and what is allowed."""
        started = perf_counter()
        request = self.resolve(request)
        features, told = self.prompts.encode([request.prompt, request.negative_prompt or None])
        fields = zip(("prompt", "negative_prompt"), told, strict=True)
        envelope = Envelope(request, tuple(f"{field}: {warning}" for field, warnings in fields for warning in warnings))
        return EncodeResult(envelope.with_timing("encode", (perf_counter() - started) * 1e3), features)

    def resolve(self, request: GenerationRequest) -> GenerationRequest:
        """The request with every open field filled from the bundle, and a seed drawn if it names none."""
        request = request.validate().with_defaults(
            **self.spec.request_defaults, seed=secrets.randbelow(DRAWN_SEED_LIMIT)
        )
        check_scheduler(request, self.spec)
        return request


def _tokenizers(spec: BackboneSpec, folder: Path) -> list[Tokenizer]:
    """One for each text encoder; BundleError names a missing file."""
    tokenizers = []
    for name, encoder in zip(tokenizer_files(spec), spec.text.encoders, strict=True):
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name}: missing")
        tokenizers.append(Tokenizer.for_encoder(folder / name, encoder))
    return tokenizers


def check_scheduler(request: GenerationRequest, spec: BackboneSpec) -> None:
    """Refuse a scheduler that the served noise process does not have."""
    if request.scheduler not in spec.schedule.schedulers:
        allowed = ", ".join(spec.schedule.schedulers)
        raise InvalidRequestError(
            f"scheduler = {request.scheduler!r}: must be one of {allowed} for the bundle {spec.name!r}"
        )
