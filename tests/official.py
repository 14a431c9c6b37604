"""A bundle's networks in the layout that official checkpoints have on the hub; what an import must read back."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, T5Config

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle
from diffsplat.denoisers.graph_inputs import FAMILIES
from diffsplat.networks import bundle_network, network_builders
from diffsplat.text.official_names import to_transformers
from export.importing.importer import ImportOptions
from export.importing.layout import default_tags
from tests.families import family_spec, tokenizer_json

NEWEST, OLDER = "013020", "001000"
TAGS = {
    "gsvae": "gsvae_gobj265k_sd",
    "gsrecon": "gsrecon_gobj265k_cnp_even4",
    "elevest": "elevest_gobj265k_b_C25",
    "denoiser": "gsdiff_gobj83k_sd15__render",
    **{f"controlnet_{kind}": f"gsdiff_gobj83k_sd15__render__{kind}" for kind in ("depth", "normal", "canny")},
}
_CONTROLS = ("depth", "normal", "canny")
_OFFICIAL_CLASSES = {
    "unet": "UNetMV2DConditionModel",
    "pixart": "PixArtTransformerMV2DModel",
    "sd3": "SD3TransformerMV2DModel",
}
_OLD_ATTENTION_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def unpublished_tags(backbone: str) -> dict[str, str]:
    """Folders of our own for those of a backbone's networks that were never published."""
    names = ("denoiser", *(f"controlnet_{kind}" for kind in _CONTROLS))
    return {name: f"own_{backbone}_{name}" for name in names if name not in default_tags(backbone)}


def write_official(
    bundle: Bundle,
    root: Path,
    sharded: bool = False,
    base_variant: str | None = None,
    tags: Mapping[str, str] = TAGS,
) -> ImportOptions:
    """Write `root/out` and `root/base`; returns the options that import them to `root/bundle`.

    Args:
        bundle: whose networks to write.
        root: where to.
        sharded: denoiser and text encoders in several files with an index.
        base_variant: "fp16" writes the text encoders' variant of that name, in half precision.
        tags: network -> folder.
    """
    spec, out, base = bundle.spec, root / "out", root / "base"
    for name in network_builders(spec):
        state = {key: tensor.clone() for key, tensor in bundle_network(bundle, name).state_dict().items()}
        if name.startswith("text_encoder"):
            _write_encoder(spec, base / name, name, state, sharded, base_variant)
        elif name == "image_encoder":
            _write_vae(spec, base / "vae", state)
        elif name == "denoiser":
            # an older iteration that must not be taken
            for iteration, scale in ((OLDER, 0.0), (NEWEST, 1.0)):
                part = "unet_ema" if spec.family == "unet" else "transformer_ema"
                folder = iteration_folder(out, name, iteration, tags) / part
                write_weights(folder, "diffusion_pytorch_model", {k: scale * v for k, v in state.items()}, sharded)
                (folder / "config.json").write_text(json.dumps(official_config(bundle)))
        elif name.startswith("controlnet_"):
            write_weights(iteration_folder(out, name, tags=tags) / "controlnet", "diffusion_pytorch_model", state)
        else:
            write_weights(iteration_folder(out, name, tags=tags), "model", state)
    for path in bundle.tokenizer_paths:
        _write_tokenizer(base / path.stem, path.read_text(), has_json=spec.family == "sd3")
    return ImportOptions(spec, str(out), str(base), root / "bundle", tags=tags)


def iteration_folder(out: Path, network: str, iteration: str = NEWEST, tags: Mapping[str, str] = TAGS) -> Path:
    return out / tags[network] / "checkpoints" / iteration


def write_weights(
    folder: Path, stem: str, state: dict[str, Tensor], sharded: bool = False, variant: str | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    dotted = f".{variant}" if variant else ""
    if not sharded:
        save_file(state, folder / f"{stem}{dotted}.safetensors", metadata={"format": "pt"})
        return
    total = sum(tensor.nbytes for tensor in state.values())
    save_torch_state_dict(
        state, folder, filename_pattern=f"{stem}{dotted}{{suffix}}.safetensors", max_shard_size=total // 3
    )
    if variant:  # transformers puts the variant elsewhere than the hub's library does
        (index,) = folder.glob("*.index.json")
        index.rename(folder / f"{stem}.safetensors.index{dotted}.json")
    assert len(list(folder.glob("*.safetensors"))) > 1


def official_config(bundle: Bundle) -> dict[str, Any]:
    """`config.json` of the denoiser, as the official classes write it."""
    with torch.device("meta"):
        config: dict[str, Any] = dict(network_builders(bundle.spec)["denoiser"]().config)

    def official(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [official(entry) for entry in value]
        return value.replace("2D", "MV2D") if isinstance(value, str) else value

    for name in config:
        if name.endswith(("block_type", "block_types")):
            config[name] = official(config[name])
    is_image = bundle.spec.is_image_conditioned
    extra = {"view_concat_condition": is_image, "input_concat_plucker": True, "input_concat_binary_mask": is_image}
    return {**config, **extra, "_class_name": _OFFICIAL_CLASSES[bundle.spec.family], "_diffusers_version": "0.32.0"}


def _write_encoder(
    spec: BackboneSpec, folder: Path, name: str, state: dict[str, Tensor], sharded: bool, variant: str | None
) -> None:
    encoder = dict(zip(spec.text.numbered("text_encoder"), spec.text.encoders, strict=True))[name]
    official = {key: tensor.clone() for key, tensor in to_transformers(encoder.kind, state).items()}
    if encoder.kind != "t5":  # a constant that old files hold
        prefix = "" if encoder.kind == "clip" else "text_model."
        official[f"{prefix}embeddings.position_ids"] = torch.arange(encoder.max_tokens)[None]
    if variant == "fp16":
        official = {key: value.half() if value.is_floating_point() else value for key, value in official.items()}
    write_weights(folder, "model", official, sharded, variant)
    config: Any = (T5Config if encoder.kind == "t5" else CLIPTextConfig)(**encoder.config)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), default=str))


def _write_tokenizer(folder: Path, tokenizer_json: str, has_json: bool) -> None:
    """CLIP's as two files, T5's as a sentencepiece model, beside which SD3's repositories have a `tokenizer.json`."""
    folder.mkdir(parents=True)
    model = json.loads(tokenizer_json)["model"]
    if model["type"] == "BPE":
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        return
    assert model["type"] == "Unigram"
    trainer = protobuf_field(3, 1) + protobuf_field(40, model["unk_id"])  # unigrams
    pieces = (protobuf_field(1, piece.encode()) + protobuf_field(2, float(score)) for piece, score in model["vocab"])
    fields = [*(protobuf_field(1, piece) for piece in pieces), protobuf_field(2, trainer)]
    (folder / "spiece.model").write_bytes(b"".join(fields))
    if has_json:
        (folder / "tokenizer.json").write_text(tokenizer_json)


def protobuf_field(number: int, value: int | float | bytes) -> bytes:
    """One field of a message."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    head, body = (number << 3, b"") if isinstance(value, int) else (number << 3 | 2, value)
    return _varint(head) + _varint(value if isinstance(value, int) else len(value)) + body


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def _write_vae(spec: BackboneSpec, folder: Path, state: dict[str, Tensor]) -> None:
    """All of the autoencoder, its attention under the names of old files."""
    config = {name: value for name, value in spec.gsvae.items() if name != "tiny_decoder"}
    vae: Any = AutoencoderKL(**config, in_channels=3, out_channels=3)
    official = {**vae.state_dict(), **state}
    for new, old in _OLD_ATTENTION_NAMES.items():
        official = {name.replace(new, old): tensor for name, tensor in official.items()}
    write_weights(folder, "diffusion_pytorch_model", official)
    (folder / "config.json").write_text(json.dumps({**dict(vae.config), "_class_name": "AutoencoderKL"}))


def write_base_model(root: Path, name: str, seed: int = 0) -> Path:
    """A tiny base model as on the hub: a denoiser that takes latents alone, text encoders, tokenizers and image VAE.

    Args:
        root: folder to write.
        name: of the table, whose shrunken spec is `families.family_spec(name)`.
        seed: of the random weights.

    Returns:
        `root`.
    """
    spec = family_spec(name, images=True)
    stock: Any = getattr(diffusers, FAMILIES[spec.family].official_class)
    builders = network_builders(spec)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = stock(**{**spec.denoiser, "in_channels": spec.latent_channels})
        encoders = {part: builders[part]().state_dict() for part in spec.text.numbered("text_encoder")}
        image_encoder = builders["image_encoder"]().state_dict()
    folder = root / ("unet" if spec.family == "unet" else "transformer")
    write_weights(folder, "diffusion_pytorch_model", network.state_dict())
    config = {**network.config, "_class_name": stock.__name__, "sample_size": 2 * spec.latent_size}
    if spec.family == "pixart":  # as its files were written
        config |= {"_class_name": "Transformer2DModel", "interpolation_scale": None}
    (folder / "config.json").write_text(json.dumps(config))
    for part, state in encoders.items():
        _write_encoder(spec, root / part, part, state, False, None)
    for part, encoder in zip(spec.text.numbered("tokenizer"), spec.text.encoders, strict=True):
        _write_tokenizer(root / part, tokenizer_json(encoder.kind), has_json=spec.family == "sd3")
    _write_vae(spec, root / "vae", image_encoder)
    return root
