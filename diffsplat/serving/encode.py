"""`encode`: a client's request -> a request without open defaults, and the text embeddings."""

import os
import secrets
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request import GenerationRequest
from torch import Tensor

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import TOKENIZER, Bundle, BundleError
from diffsplat.runtime import ExportRecord, Graph, bundle_graph, load_graph
from diffsplat.serving.envelope import Envelope
from diffsplat.tokenizer import TokenBatch, Tokenizer

DRAWN_SEED_LIMIT = 2**32  # short enough to be typed again


class EncodeResult(NamedTuple):
    """What `denoise` needs."""

    envelope: Envelope
    text_embeddings: Tensor  # [2, L, D] float32: prompt, negative prompt


class EncodeStage:
    """Fills in what a request leaves open and encodes its texts."""

    def __init__(self, spec: BackboneSpec, text_encoder: Graph, tokenizer: Tokenizer) -> None:
        self.spec = spec
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, folder: str | os.PathLike[str], threads: int | None = None) -> "EncodeStage":
        """From a version folder. BundleError names a file that is missing or damaged."""
        spec = ExportRecord.read(folder).spec
        path = Path(folder) / TOKENIZER
        if not path.is_file():
            raise BundleError(f"{path}: missing")
        tokenizer = Tokenizer.from_json(path, spec.text_encoder.max_tokens)
        return cls(spec, load_graph(folder, "text_encoder", threads), tokenizer)

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "EncodeStage":
        """Straight from a bundle, run by torch."""
        tokenizer = Tokenizer.from_json(bundle.tokenizer_path, bundle.spec.text_encoder.max_tokens)
        return cls(bundle.spec, bundle_graph(bundle, "text_encoder"), tokenizer)

    def run(self, request: GenerationRequest) -> EncodeResult:
        """Encode one request. InvalidRequestError names the bad field, its value and what is allowed."""
        started = perf_counter()
        request = self.resolve(request)
        tokens = self.tokenizer.encode([request.prompt, request.negative_prompt])
        embeddings = self.text_encoder(tokens.input_ids)
        envelope = Envelope(request, self._warnings(tokens))
        return EncodeResult(envelope.with_timing("encode", (perf_counter() - started) * 1e3), embeddings)

    def resolve(self, request: GenerationRequest) -> GenerationRequest:
        """The request with every open field filled from the bundle, and a seed drawn if it names none."""
        request = request.validate().with_defaults(
            **self.spec.request_defaults, seed=secrets.randbelow(DRAWN_SEED_LIMIT)
        )
        check_scheduler(request, self.spec)
        return request

    def _warnings(self, tokens: TokenBatch) -> tuple[str, ...]:
        warnings = []
        for name, cut, unknown in zip(
            ("prompt", "negative_prompt"), tokens.truncated, tokens.unknown_words, strict=True
        ):
            if cut:
                warnings.append(f"{name}: its end was cut, the text encoder reads {self.tokenizer.max_tokens} tokens")
            if unknown:
                words = ", ".join(repr(word[:40]) for word in unknown[:8]) + (" ..." if len(unknown) > 8 else "")
                warnings.append(f"{name}: the text encoder does not know {words}")
        return tuple(warnings)


def check_scheduler(request: GenerationRequest, spec: BackboneSpec) -> None:
    """Refuse a scheduler that the served noise process does not have."""
    if request.scheduler not in spec.schedule.schedulers:
        allowed = ", ".join(spec.schedule.schedulers)
        raise InvalidRequestError(
            f"scheduler = {request.scheduler!r}: must be one of {allowed} for the bundle {spec.name!r}"
        )
