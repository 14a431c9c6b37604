"""What a denoiser starts from: its weights, its text, and the encoder of its condition image.

start   finished run, bundle, or base model (training.official)         the denoiser, and a trained text encoder
base    base model or bundle                                            frozen text encoders, image autoencoder
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from diffsplat.backbones import BackboneSpec, TextSpec, image_conditioned
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.bundle import MANIFEST as BUNDLE_MANIFEST
from diffsplat.bundle import tokenizer_files
from diffsplat.denoisers.interface import build_denoiser
from diffsplat.denoisers.unet import expand_input_channels
from diffsplat.images.vae_encoder import ImageEncoder, build_image_encoder
from diffsplat.text.encoders import build_encoder
from diffsplat.text.tokenizer import Tokenizer, train_tokenizer
from diffsplat.weights import holds_network
from training.assemble import TOKENIZER_FILE
from training.checkpoint import FINISHED, CheckpointError
from training.conditions import PromptText, StoredText, TextSource, trained_text
from training.config.diffusion import DiffusionConfig
from training.data.procedural.synthetic import vocabulary
from training.data.procedural.synthetic_config import CONFIGS
from training.official import FIRST_LAYERS, is_base_model, load_base_denoiser, load_image_encoder
from training.parents import Parent, open_parent
from training.stages.common import dataset
from training.text_encoders import open_text_encoders
from training.text_store import TextStore, read_facts

_SHORTEST_STEM = 3  # letters


class OpenedText(NamedTuple):
    """The text of a run, before any network is built."""

    spec: TextSpec  # with the size of its vocabulary
    tokenizer_json: str | None  # of an encoder that is trained
    identity: dict[str, Any]  # JSON facts for the lineage


def open_start(config: DiffusionConfig) -> Parent | None:
    """The run or bundle that a denoiser starts from; None for a base model and for random weights.

    Raises:
        ValueError: `config.start` is no such folder, or a file of it is missing or damaged.
    """
    start = config.start
    if start is None or is_base_model(start):
        return None
    if not (start / FINISHED).is_dir() and not (start / BUNDLE_MANIFEST).is_file():
        raise CheckpointError(
            f"start = {start}: must be a finished run, a bundle, or a base model with unet/ or transformer/"
        )
    return open_parent(start, "denoiser")


def base_of(config: DiffusionConfig, purpose: str) -> Path:
    """Folder of frozen encoders.

    Raises:
        ValueError: there is none; the message says what it is needed for.
    """
    start_is_base = config.start is not None and (
        is_base_model(config.start) or (config.start / BUNDLE_MANIFEST).is_file()
    )
    base = config.start if config.base is None and start_is_base else config.base
    if base is None:
        raise ValueError(f"base is not set: a base model or bundle is needed for {purpose}")
    return base


def open_text(config: DiffusionConfig, spec: BackboneSpec, start: Parent | None) -> OpenedText:
    """Check where a run's text comes from.

    Args:
        config: Of the run.
        spec: Its backbone, as in the table.
        start: What it starts from; a trained text encoder goes on with its tokenizer.

    Raises:
        ValueError: the text does not fit the backbone, or a file is missing or damaged.
    """
    is_open = any("vocab_size" not in encoder.config for encoder in spec.text.encoders)
    if config.text == "trained":
        if len(spec.text.encoders) != 1 or not is_open:
            raise ValueError(f"text = 'trained': those of {spec.name} are frozen; take 'frozen' or 'stored'")
        (encoder,) = spec.text.encoders
        same_words = None if config.adapt else start
        tokenizer_json = _new_tokenizer(config, spec) if same_words is None else _tokenizer_of(same_words)
        vocab_size = Tokenizer.for_encoder(tokenizer_json, encoder).vocab_size
        encoder = dataclasses.replace(encoder, config={**encoder.config, "vocab_size": vocab_size})
        return OpenedText(dataclasses.replace(spec.text, encoders=(encoder,)), tokenizer_json, {"kind": "trained"})
    if config.text == "stored":
        assert config.text_store is not None
        facts = read_facts(config.text_store)
        text = TextSpec(**facts.text) if is_open else spec.text
        store = TextStore(config.text_store, text)
        return OpenedText(text, None, {"kind": "stored", **store.identity})
    base = base_of(config, "frozen text encoders")
    text = spec.text
    if is_open:
        text = BackboneSpec.from_dict(open_parent(base, TEXT_ENCODER).facts["spec"]).text
    return OpenedText(text, None, {"kind": "frozen", "base": str(base)})


def _new_tokenizer(config: DiffusionConfig, spec: BackboneSpec) -> str:
    """A tokenizer of every word that the data's captions may have."""
    (encoder,) = spec.text.encoders
    if config.data.source == "procedural":
        return train_tokenizer(vocabulary(CONFIGS[config.data.grammar]), encoder.max_tokens)
    source = dataset(config.data, config.backbone, validation=False).source
    return train_tokenizer((source.caption(index, None) for index in range(len(source))), encoder.max_tokens)


def _tokenizer_of(start: Parent) -> str:
    folder = start.path / FINISHED if start.bundle is None else start.path
    name = TOKENIZER_FILE if start.bundle is None else tokenizer_files(start.bundle.spec)[0]
    if not (folder / name).is_file():
        raise CheckpointError(f"{folder / name}: missing; the run did not train its text encoder")
    return (folder / name).read_text()


def start_denoiser(config: DiffusionConfig, spec: BackboneSpec, start: Parent | None) -> nn.Module:
    """The denoiser with its first weights, trainable."""
    if start is not None:
        network = _continued(spec, start)
    elif config.start is not None:
        network = load_base_denoiser(config.start, spec)
    else:
        network = build_denoiser(spec)
    return network.requires_grad_(True)


def _continued(spec: BackboneSpec, start: Parent) -> nn.Module:
    """The denoiser of a run or bundle; a text model's gets the channel of the mask, which it does not read yet.

    Where the number of latent channels is another one, the first ones keep their weights: see `_with_latents`.
    """
    before = BackboneSpec.from_dict(start.facts["spec"])
    network = start.load("denoiser", build_denoiser(before))
    if before.latent_channels != spec.latent_channels:
        return _with_latents(spec, network, before.latent_channels)
    if before.denoiser["in_channels"] == spec.denoiser["in_channels"]:
        return network
    wider = build_denoiser(spec)
    first = FIRST_LAYERS[spec.family]
    wider.load_state_dict(expand_input_channels(network.state_dict(), spec.denoiser["in_channels"], first))
    return wider


@torch.no_grad()
def _with_latents(spec: BackboneSpec, network: nn.Module, before: int) -> nn.Module:
    """The denoiser of another number of latent channels; it does not read the new ones yet.

    Transformers write all channels of a patch by one layer, which starts anew.
    """
    other = build_denoiser(spec)
    own, old = other.state_dict(), network.state_dict()
    for name, value in old.items():
        if value.shape == own[name].shape:
            own[name].copy_(value)
    first, shared = FIRST_LAYERS[spec.family], min(before, spec.latent_channels)
    own[first][:, :shared] = old[first][:, :shared]
    own[first][:, shared : spec.latent_channels] = 0.0
    own[first][:, spec.latent_channels :] = old[first][:, before:]  # rays and mask
    if spec.family == "unet":
        for name in ("conv_out.weight", "conv_out.bias"):
            own[name][:shared] = old[name][:shared]
    return other


def may_start(spec: BackboneSpec, before: BackboneSpec) -> bool:
    """Whether a denoiser can go on as another: the same one, or the text model that an image model is made of."""
    if not before.is_image_conditioned and spec.is_image_conditioned:
        before = image_conditioned(before)
    return same_denoiser(spec, before)


def adapted(before: BackboneSpec, spec: BackboneSpec) -> BackboneSpec:
    """The spec of a denoiser that goes on with the latents and the vocabulary of another spec."""
    names: tuple[str, ...] = ("scaling_factor", "shift_factor")
    scale = {name: spec.gsvae[name] for name in names if name in spec.gsvae}
    encoders = before.text.encoders
    if len(encoders) == len(spec.text.encoders) == 1:
        words = {"vocab_size": spec.text.encoders[0].config["vocab_size"]}
        encoders = (dataclasses.replace(encoders[0], config={**encoders[0].config, **words}),)
    outputs_each = before.denoiser["out_channels"] // before.latent_channels  # PixArt also predicts a variance
    denoiser = {
        **before.denoiser,
        "in_channels": before.denoiser["in_channels"] + spec.latent_channels - before.latent_channels,
        "out_channels": outputs_each * spec.latent_channels,
    }
    return dataclasses.replace(
        before,
        latent_channels=spec.latent_channels,
        geometry=spec.geometry,
        gsvae={**before.gsvae, **scale},
        text=dataclasses.replace(before.text, encoders=encoders),
        denoiser=denoiser,
    )


def same_denoiser(first: BackboneSpec, second: BackboneSpec) -> bool:
    """Whether the networks of one can go on as the other: what lies beside the denoiser may differ."""
    fields = ("family", "latent_channels", "latent_size", "schedule", "geometry", "text", "denoiser")
    scale = [(spec.gsvae["scaling_factor"], spec.gsvae.get("shift_factor") or 0.0) for spec in (first, second)]
    return scale[0] == scale[1] and all(getattr(first, name) == getattr(second, name) for name in fields)


def start_text(
    config: DiffusionConfig, spec: BackboneSpec, text: OpenedText, start: Parent | None, device: torch.device
) -> tuple[TextSource, nn.Module | None]:
    """The text of a run, and its encoder where that is trained.

    Raises:
        ValueError: an encoder's file is missing, damaged or of another model.
    """
    if config.text == "stored":
        assert config.text_store is not None
        return StoredText(TextStore(config.text_store, text.spec)), None
    if config.text == "frozen":
        named = dataclasses.replace(spec, text=text.spec)
        return PromptText(open_text_encoders(base_of(config, "its text"), named, device=device).prompts), None
    (encoder,) = text.spec.encoders
    network: nn.Module = build_encoder(encoder)
    assert text.tokenizer_json is not None
    tokenizer = Tokenizer.for_encoder(text.tokenizer_json, encoder)
    if start is not None and config.adapt:
        _load_known_words(start, network, tokenizer)
    elif start is not None:
        start.load(TEXT_ENCODER, network)
    return trained_text(text.spec, tokenizer, network), network.requires_grad_(True).to(device)


def _load_known_words(start: Parent, network: nn.Module, tokenizer: Tokenizer) -> None:
    """Weights of `start`'s text encoder, with the embeddings of its words at their places in another vocabulary.

    A word that `start` does not know begins as the longest of its words that the new one begins with, as "cubes" does
    as "cube", or else at random.
    """
    (encoder,) = BackboneSpec.from_dict(start.facts["spec"]).text.encoders
    state = start.load(TEXT_ENCODER, build_encoder(encoder)).state_dict()
    known = Tokenizer.for_encoder(_tokenizer_of(start), encoder).vocabulary
    (name,) = (name for name in state if name.endswith("token_embedding.weight"))
    rows = network.state_dict()[name].clone()
    for word, row in tokenizer.vocabulary.items():
        begins = [old for old in known if len(old) >= _SHORTEST_STEM and word.startswith(old)]
        old = word if word in known else max(begins, key=len, default="")
        if old:
            rows[row] = state[name][known[old]]
    network.load_state_dict({**state, name: rows})


def open_image_encoder(folder: Path, spec: BackboneSpec) -> ImageEncoder:
    """The frozen encoder of condition images: of a base model, or of a bundle or run that holds one.

    Raises:
        ValueError: a file is missing, damaged or of another autoencoder.
    """
    is_run = (folder / FINISHED).is_dir() or (folder / BUNDLE_MANIFEST).is_file()
    if not is_run:
        return load_image_encoder(folder, spec)
    parent = open_parent(folder, "image_encoder")
    assert holds_network(parent.facts["files"], "image_encoder")
    encoder = parent.load("image_encoder", build_image_encoder(spec))
    assert isinstance(encoder, ImageEncoder)
    return encoder
