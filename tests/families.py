"""Very small backbones of every family, with random weights: what is served does not depend on how large they are."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors
from transformers import CLIPTokenizer

from diffsplat.backbones import BACKBONES, PICO, BackboneSpec, SplatGeometry, TextEncoderSpec, image_conditioned
from diffsplat.backbones.spec import ControlType
from diffsplat.bundle import Bundle, write_bundle
from diffsplat.networks import network_builders
from diffsplat.text.tokenizer import Tokenizer

CAPTIONS = ["a small red cube", "two blue spheres on a large green cone"]
CLIP_TOKENS, T5_TOKENS = 12, 20
T5_SENTINELS = 100  # tokens that T5 has besides its pieces
GRID, LATENT = 32, 8

_SMALL_UNET = {
    "sample_size": LATENT,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
_SMALL_TRANSFORMER = {"sample_size": LATENT, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}


_ELEVEST = {
    "backbone": {"image_size": 56, "dim": 16, "num_blocks": 1, "num_heads": 2, "num_registers": 2},
    "input_size": 56,
}


def family_spec(name: str, controls: tuple[ControlType, ...] = (), images: bool = False) -> BackboneSpec:
    """A backbone of the table, shrunken: same family, same text recipe, same noise process, official geometry.

    Args:
        name: of the table.
        controls: ControlNets beside it.
        images: with the base image VAE's encoder and ElevEst.
    """
    base = BACKBONES[name.removesuffix("_image")]
    text = dataclasses.replace(base.text, encoders=tuple(_small_encoder(encoder) for encoder in base.text.encoders))
    text = dataclasses.replace(text, min_width=0)
    spec = dataclasses.replace(
        base,
        name=f"tiny_{base.name}",
        latent_size=LATENT,
        geometry=SplatGeometry(grid_size=GRID, scale_min=0.004, scale_max=0.16),
        text=text,
        denoiser=_small_denoiser(base, text.width, text.pooled_width),
        gsvae={
            **PICO.gsvae,
            **{key: value for key, value in base.gsvae.items() if key.startswith("use_") or key.endswith("_factor")},
            "latent_channels": base.latent_channels,
            "block_out_channels": [8, 8, 16],
            "norm_num_groups": 4,
        },
        gsrecon={**PICO.gsrecon, "dim": 16, "num_blocks": 1, "num_heads": 2},
        image_encoder=images or name.endswith("_image"),
        elevest=_ELEVEST if images else None,
        controls=controls,
        steps=3,
    )
    return image_conditioned(spec) if name.endswith("_image") else spec


def _small_encoder(encoder: TextEncoderSpec) -> TextEncoderSpec:
    small: dict[str, Any]
    if encoder.kind == "t5":
        small = {"d_model": 40, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 3}
        tokens = T5_TOKENS
    else:
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        small |= {"max_position_embeddings": CLIP_TOKENS, "projection_dim": 12}
        tokens = CLIP_TOKENS
    tokenizer = Tokenizer.for_encoder(tokenizer_json(encoder.kind), dataclasses.replace(encoder, max_tokens=tokens))
    unused = T5_SENTINELS if encoder.kind == "t5" else 0
    config = {**encoder.config, **small, "vocab_size": tokenizer.vocab_size + unused}
    return dataclasses.replace(encoder, max_tokens=tokens, config=config)


def _small_denoiser(base: BackboneSpec, width: int, pooled: int) -> dict[str, Any]:
    if base.family == "unet":
        config = {**base.denoiser, **_SMALL_UNET, "cross_attention_dim": width, "attention_head_dim": [2, 2]}
        if "transformer_layers_per_block" in config:
            config |= {"transformer_layers_per_block": [1, 2], "addition_time_embed_dim": 4}
            config["projection_class_embeddings_input_dim"] = pooled + 6 * 4
        return config
    config = {**base.denoiser, **_SMALL_TRANSFORMER}
    if base.family == "pixart":
        return {**config, "cross_attention_dim": 16, "caption_channels": width}
    config |= {"joint_attention_dim": width, "caption_projection_dim": 16, "pooled_projection_dim": pooled}
    config |= {"pos_embed_max_size": 24}
    return {**config, "dual_attention_layers": [0]} if base.denoiser.get("dual_attention_layers") else config


@functools.cache
def tokenizer_json(kind: str) -> str:
    """Byte pairs for CLIPs, as `transformers` reads them; unigrams with an end token alone for T5."""
    if kind != "t5":
        return _clip_tokenizer()
    words = sorted({f"▁{word}" for caption in CAPTIONS for word in caption.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((word, -1.0) for word in words), ("▁", -2.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer.to_str()


def _clip_tokenizer() -> str:
    """Every letter, alone and at the end of a word, and merges that lead to the captions' words."""
    merges: list[tuple[str, str]] = []
    words = {word for caption in CAPTIONS for word in caption.split()}
    for word in sorted(words, key=lambda word: (-len(word), word)):  # the same in every process
        *letters, last = list(word)
        letters.append(f"{last}</w>")
        for i in range(1, len(letters)):
            merges.append(("".join(letters[:i]), letters[i]))
    merges = list(dict.fromkeys(merges))
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *dict.fromkeys(map("".join, merges))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        (Path(folder) / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
        clip: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return str(clip.backend_tokenizer.to_str())


def write_family_bundle(
    folder: Path,
    name: str,
    controls: tuple[ControlType, ...] = (),
    images: bool = False,
    seed: int = 0,
    gsrecon: dict[str, Any] | None = None,
) -> Bundle:
    """A bundle of `family_spec` with random weights, but ControlNets are not silent and images as loud as noise.

    `gsrecon` replaces entries of `BackboneSpec.gsrecon`; the other networks do not change with it.
    """
    spec = family_spec(name, controls, images)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = {network: build() for network, build in network_builders(spec).items()}
        if spec.image_encoder:
            vae: Any = networks["image_encoder"]
            for parameter in (vae.quant_conv or vae.encoder.conv_out).parameters():
                parameter.data[: spec.latent_channels] *= 20  # of the mean
        for kind in spec.controls:
            for parameter in networks[f"controlnet_{kind}"].parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
        if gsrecon:
            spec = dataclasses.replace(spec, gsrecon={**spec.gsrecon, **gsrecon})
            networks["gsrecon"] = network_builders(spec)["gsrecon"]()
    texts = [tokenizer_json(encoder.kind) for encoder in spec.text.encoders]
    return write_bundle(folder, spec, networks, texts, {"seed": seed}, dtype=torch.float32)
