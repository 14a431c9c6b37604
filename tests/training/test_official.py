"""Folders of base models start every family's denoiser; what does not fit is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffsplat.splats.gsvae import build_gsvae, widen_from_image_vae
from diffsplat.text.features import PromptEncoder
from diffsplat.text.tokenizer import Tokenizer
from export.importing.layout import SourceError
from tests.families import CAPTIONS, family_spec
from tests.official import write_weights
from training.official import (
    FIRST_LAYERS,
    autoencoder_state,
    is_base_model,
    load_base_denoiser,
    load_image_encoder,
    load_text,
)  # fmt: skip

FAMILY_NAMES = ("sd15", "sd21", "sdxl", "pixart_alpha", "pixart_sigma", "sd3", "sd35")


def denoiser_file(base: Path) -> Path:
    return next(path for name in ("unet", "transformer") for path in (base / name).glob("*.safetensors"))


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_base_model_starts_a_denoiser_whose_new_channels_are_silent(base_model, name, kind):
    """All weights are the base model's, and rays and mask are multiplied by zeros."""
    base = base_model(name)
    spec = family_spec(name if kind == "text" else f"{name}_image")
    network = load_base_denoiser(base, spec)
    state, official = network.state_dict(), load_file(denoiser_file(base))
    first = FIRST_LAYERS[spec.family]
    assert set(state) == set(official)
    for key, tensor in official.items():
        if key == first:
            assert state[key].shape[1] == spec.denoiser["in_channels"] == spec.latent_channels + (6, 7)[kind == "image"]
            assert torch.equal(state[key][:, : spec.latent_channels], tensor)
            assert not state[key][:, spec.latent_channels :].any()
        else:
            assert torch.equal(state[key], tensor)
    assert not any(parameter.is_meta for parameter in network.parameters())
    assert is_base_model(base) and not is_base_model(base / "vae")


def test_a_base_model_in_shards_and_half_precision(base_model, tmp_path):
    base, spec = base_model("sd3"), family_spec("sd3")
    state = {name: tensor.half() for name, tensor in load_file(denoiser_file(base)).items()}
    write_weights(tmp_path / "transformer", "diffusion_pytorch_model", state, sharded=True, variant="fp16")
    shutil.copy(base / "transformer" / "config.json", tmp_path / "transformer")
    network = load_base_denoiser(tmp_path, spec)
    assert torch.equal(network.pos_embed.pos_embed, state["pos_embed.pos_embed"].float())
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_text_and_image_encoders(base_model):
    base, spec = base_model("sd35"), family_spec("sd35_image")
    text = load_text(base, spec)
    tokenizers = [
        Tokenizer.for_encoder(source, encoder)
        for source, encoder in zip(text.tokenizers, spec.text.encoders, strict=True)
    ]
    features = PromptEncoder(spec.text, tokenizers, text.encoders).encode([*CAPTIONS, None]).features
    assert features.embeddings.shape == (3, spec.text.tokens, spec.text.width)
    encoder = load_image_encoder(base, spec)
    assert encoder(torch.rand(1, 3, spec.image_size, spec.image_size)).shape[1] == 16
    gsvae = build_gsvae(spec)
    widen_from_image_vae(gsvae, autoencoder_state(base, "AutoencoderKL"))  # a stage starts its autoencoder so
    assert torch.equal(gsvae.vae.encoder.conv_in.weight[:, :3], encoder.encoder.conv_in.weight)


def broken(base: Path, out: Path) -> Path:
    shutil.copytree(base, out, dirs_exist_ok=True)
    return out


def test_what_does_not_fit_is_refused_by_name(base_model, tmp_path):
    base, spec = base_model("sd15"), family_spec("sd15")
    with pytest.raises(SourceError, match=r"nowhere: has none of the folders unet, unet_ema"):
        load_base_denoiser(tmp_path / "nowhere", spec)
    with pytest.raises(SourceError, match=r"has none of the folders transformer, transformer_ema"):
        load_base_denoiser(base, family_spec("sd3"))
    with pytest.raises(SourceError, match=r"unet/config.json: not the base model of tiny_sdxl: .*addition_embed_type"):
        load_base_denoiser(base, family_spec("sdxl"))

    root = broken(base, tmp_path / "truncated")
    path = denoiser_file(root)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SourceError, match=r"diffusion_pytorch_model.safetensors: truncated"):
        load_base_denoiser(root, spec)

    root = broken(base, tmp_path / "keys")
    state = load_file(denoiser_file(root))
    del state["conv_out.bias"]
    state["conv_in.weight"] = torch.zeros(8, 12, 3, 3)
    save_file(state, denoiser_file(root))
    with pytest.raises(SourceError, match=r"keys/unet: does not fit: conv_in.weight is \[8, 12, 3, 3\], not .*missing"):
        load_base_denoiser(root, spec)

    root = broken(base, tmp_path / "config")
    (root / "unet" / "config.json").unlink()
    with pytest.raises(SourceError, match=r"unet/config.json: missing"):
        load_base_denoiser(root, spec)
    config = json.loads((root / "vae" / "config.json").read_text())
    (root / "vae" / "config.json").write_text(json.dumps({**config, "norm_num_groups": 2}))
    with pytest.raises(SourceError, match="vae/config.json: not the image VAE of tiny_sd15: norm_num_groups is 2"):
        load_image_encoder(root, spec)
    with pytest.raises(SourceError, match="describes a AutoencoderKL, not an AutoencoderTiny"):
        autoencoder_state(root, "AutoencoderTiny")
    with pytest.raises(SourceError, match="holds no autoencoder"):
        autoencoder_state(root / "unet", "AutoencoderKL")
    shutil.rmtree(root / "tokenizer")
    with pytest.raises(SourceError, match="config/tokenizer: missing; the text of tiny_sd15 needs it"):
        load_text(root, spec)
