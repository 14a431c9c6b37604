"""Frozen text encoders of an official base model or of a bundle, with the hashes that say which they are."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER, TextSpec
from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.precision import in_precision
from diffsplat.backends.transfer import call_from_host
from diffsplat.bundle import MANIFEST, TOKENIZER, open_bundle, tokenizer_files
from diffsplat.graph import Precision
from diffsplat.integrity import describe_file
from diffsplat.networks import bundle_network
from diffsplat.text.features import PromptEncoder
from diffsplat.text.official_encoders import load_official_encoder, official_weight_files
from diffsplat.text.official_tokenizers import official_tokenizer_json
from diffsplat.text.tokenizer import Tokenizer

_VARIANTS = ("fp16", None)  # the first that is there, as an import of the model takes it


class FrozenText(NamedTuple):
    """All text encoders of a backbone, ready to encode."""

    spec: TextSpec
    prompts: PromptEncoder
    files: dict[str, str]  # file below the folder -> sha256


def open_text_encoders(
    folder: Path, spec: BackboneSpec, precision: Precision = "fp32", device: torch.device | str = "cpu"
) -> FrozenText:
    """Load the text encoders of a backbone.

    Args:
        folder: official base model in the diffusers layout (`text_encoder*/`, `tokenizer*/`), or a bundle.
        spec: the backbone; a bundle's own spec adds the size of its vocabulary.
        precision: of the weights.
        device: where they lie; features come back to the CPU.

    Raises:
        ValueError: a part is missing, damaged or of another model; the message names it.
    """
    opened = _from_bundle if (folder / MANIFEST).is_file() else _from_official
    if not folder.is_dir():
        raise ValueError(f"encoders = {folder}: no such folder; it must hold a base model or a bundle")
    return opened(folder, spec, precision, device)


def _from_official(folder: Path, spec: BackboneSpec, precision: Precision, device: Any) -> FrozenText:
    text = spec.text
    tokenizers: list[Tokenizer] = []
    networks: list[nn.Module] = []
    files: dict[str, str] = {}
    names = zip(text.numbered(TEXT_ENCODER), text.numbered(TOKENIZER), text.encoders, strict=True)
    for encoder_name, tokenizer_name, encoder in names:
        for name in (encoder_name, tokenizer_name):
            if not (folder / name).is_dir():
                raise ValueError(f"encoders = {folder}: has no {name}/, which the text of {spec.name} needs")
        tokenizers.append(_tokenizer(folder / tokenizer_name, spec.name, encoder))
        variant = _variant(folder / encoder_name)
        networks.append(load_official_encoder(folder / encoder_name, encoder, variant, precision, device))
        used = [f"{encoder_name}/{file}" for file in official_weight_files(folder / encoder_name, variant)]
        used += [f"{tokenizer_name}/{path.name}" for path in (folder / tokenizer_name).iterdir() if path.is_file()]
        files |= {name: describe_file(folder / name)["sha256"] for name in sorted(used)}
    return FrozenText(text, _prompt_encoder(text, tokenizers, networks, precision), files)


def _from_bundle(folder: Path, spec: BackboneSpec, precision: Precision, device: Any) -> FrozenText:
    bundle = open_bundle(folder)
    if bundle.spec.name != spec.name:
        raise ValueError(f"encoders = {folder}: a bundle of {bundle.spec.name!r}, not of {spec.name!r}")
    text = bundle.spec.text
    tokenizers = [
        Tokenizer.for_encoder(folder / file, encoder)
        for file, encoder in zip(tokenizer_files(bundle.spec), text.encoders, strict=True)
    ]
    networks = [bundle_network(bundle, name, precision, device) for name in text.numbered(TEXT_ENCODER)]
    parts = (TEXT_ENCODER, TOKENIZER)
    files = {name: entry["sha256"] for name, entry in bundle.files.items() if name.startswith(parts)}
    return FrozenText(text, _prompt_encoder(text, tokenizers, networks, precision), files)


def _prompt_encoder(
    text: TextSpec, tokenizers: Sequence[Tokenizer], networks: Sequence[nn.Module], precision: Precision
) -> PromptEncoder:
    graphs = [
        TorchGraph(name, in_precision(network.eval(), precision))
        for name, network in zip(text.numbered(TEXT_ENCODER), networks, strict=True)
    ]
    return PromptEncoder(text, tokenizers, [partial(call_from_host, graph) for graph in graphs])


def _tokenizer(folder: Path, backbone: str, encoder: Any) -> Tokenizer:
    try:
        return Tokenizer.for_encoder(official_tokenizer_json(folder, encoder.kind), encoder)
    except Exception as error:  # the library raises plain Exception for unreadable files
        raise ValueError(f"{folder}: no tokenizer of {backbone}: {error}") from error


def _variant(folder: Path) -> str | None:
    """Which files of an official folder are read. Raises ValueError if there are none."""
    for variant in _VARIANTS[:-1]:
        try:
            official_weight_files(folder, variant)
            return variant
        except ValueError:
            continue
    official_weight_files(folder, _VARIANTS[-1])
    return _VARIANTS[-1]
