"""Folders of base models in the layout of diffusers -> networks to train from.

    unet/ | transformer/      config.json and diffusion_pytorch_model*.safetensors; also `unet_ema`, `transformer_ema`
    vae/                      likewise; a repository that holds nothing but an autoencoder works without that folder
    text_encoder*/            config.json and model*.safetensors; the fp16 variant is preferred, as in an import
    tokenizer*/

Weights may be sharded with an index. They are read tensor by tensor into the network's own memory, as float32.
"""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safetensors import safe_open
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.backends.precision import cast_network, without_parameters
from diffsplat.bundle import TOKENIZER
from diffsplat.denoisers.graph_inputs import FAMILIES
from diffsplat.denoisers.interface import build_denoiser
from diffsplat.denoisers.unet import expand_input_channels
from diffsplat.denoisers.view_inputs import stock_config
from diffsplat.images.vae_encoder import ImageEncoder, build_image_encoder
from diffsplat.integrity import read_json
from diffsplat.text.official_encoders import load_official_encoder
from diffsplat.text.official_tokenizers import official_tokenizer_json
from export.importing.check import check_index, check_vae_config, differing_arguments, read_header
from export.importing.layout import SourceError, WeightFiles, weights_in
from export.importing.network import image_vae_name

# first layer of each family's denoiser, which grows by the channels of rays and mask
FIRST_LAYERS = {"unet": "conv_in.weight", "pixart": "pos_embed.proj.weight", "sd3": "pos_embed.proj.weight"}
_DENOISER_FOLDERS = {"unet": ("unet", "unet_ema"), "pixart": ("transformer", "transformer_ema")}
_DENOISER_FOLDERS["sd3"] = _DENOISER_FOLDERS["pixart"]
# PixArt's base models were written before diffusers gave their network a class of its own
_CLASS_NAMES = {"Transformer2DModel": "PixArtTransformer2DModel"}
_NOT_WEIGHTS = ("pos_embed.pos_embed",)  # of PixArt: the table is computed for the size of our latents
_COMPUTED = {"interpolation_scale"}  # describes that table


class OfficialText(NamedTuple):
    """Text encoders of a base model and the texts of their `tokenizer.json`, one each."""

    encoders: list[nn.Module]
    tokenizers: list[str]


def is_base_model(root: Path) -> bool:
    """Whether a folder holds a denoiser in the official layout."""
    return any((root / name).is_dir() for names in _DENOISER_FOLDERS.values() for name in names)


def load_base_denoiser(root: Path, spec: BackboneSpec) -> nn.Module:
    """The denoiser of a base model, its first layer widened to the spec's channels; the new columns are zero.

    Raises:
        SourceError: a file is missing, damaged, of another architecture, or does not fit; the message names it.
    """
    names = _DENOISER_FOLDERS[spec.family]
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise SourceError(f"{root}: has none of the folders {', '.join(names)}, which hold the denoiser of {spec.name}")
    _check_denoiser_config(folder / "config.json", spec)
    with without_parameters():
        module = build_denoiser(spec)
    cast_network(module, "fp32", (), "cpu")
    fill(module, folder, "diffusion_pytorch_model", FIRST_LAYERS[spec.family])
    return module


def fill(module: nn.Module, folder: Path, stem: str, widened: str | None = None) -> None:
    """Copy the weights of an official folder into a network; keys and shapes must match exactly.

    Args:
        module: the network; all its tensors are overwritten.
        folder: of the weights.
        stem: start of the files' names.
        widened: name of a tensor whose second axis may be shorter in the files; what is missing becomes zero.

    Raises:
        SourceError: names folder and keys.
    """
    state = module.state_dict()
    missing, problems = set(state), []
    for name, tensor in _tensors(folder, stem):
        if name not in state:
            if name not in _NOT_WEIGHTS:
                problems.append(f"unexpected {name}")
            continue
        missing.discard(name)
        channels = state[name].shape[1] if name == widened else 0
        if name == widened and tensor.ndim > 1 and tensor.shape[1] < channels:
            tensor = expand_input_channels({name: tensor}, channels, name)[name]
        if tensor.shape != state[name].shape:
            problems.append(f"{name} is {list(tensor.shape)}, not {list(state[name].shape)}")
        elif not problems:
            state[name].copy_(tensor)
    problems += [f"missing {name}" for name in sorted(missing)]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise SourceError(f"{folder}: does not fit: {', '.join(problems[:8])}{more}")


def autoencoder_folder(root: Path) -> Path:
    """Folder of an autoencoder: `vae` of a base model, or a repository that is nothing else.

    Raises:
        SourceError: neither is there.
    """
    for folder in (root / "vae", root):
        if (folder / "config.json").is_file() and "Autoencoder" in str(read_json(folder / "config.json")):
            return folder
    raise SourceError(f"{root}: holds no autoencoder, neither vae/config.json nor a config.json of its own")


def autoencoder_state(root: Path, kind: Literal["AutoencoderKL", "AutoencoderTiny"]) -> dict[str, Tensor]:
    """State dict of an image autoencoder under the names of the present stock class, float32.

    Raises:
        SourceError: a file is missing or damaged, or of another class.
    """
    folder = autoencoder_folder(root)
    found = str(read_json(folder / "config.json").get("_class_name"))
    if found != kind:
        raise SourceError(f"{folder / 'config.json'}: describes a {found}, not an {kind}")
    return {image_vae_name(name): tensor.float() for name, tensor in _tensors(folder, "diffusion_pytorch_model")}


def load_image_encoder(root: Path, spec: BackboneSpec) -> ImageEncoder:
    """The encoder of a base model's image autoencoder, frozen.

    Raises:
        SourceError: a file is missing or damaged, or the autoencoder is not that of the spec; the message names it.
    """
    folder = autoencoder_folder(root)
    config = read_json(folder / "config.json")
    # a GSVAE may have a scale of its own, measured, by which condition images are scaled too
    scale = {name: config.get(name) for name in ("scaling_factor", "shift_factor")}
    check_vae_config(dataclasses.replace(spec, gsvae={**spec.gsvae, **scale}), folder / "config.json")
    encoder = build_image_encoder(spec)
    ours = encoder.state_dict()
    state = {name: tensor for name, tensor in autoencoder_state(root, "AutoencoderKL").items() if name in ours}
    problems = [f"missing {name}" for name in ours if name not in state]
    problems += [
        f"{name} is {list(tensor.shape)}, not {list(ours[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != ours[name].shape
    ]
    if problems:
        raise SourceError(f"{folder}: not the image autoencoder of {spec.name}: {', '.join(problems[:8])}")
    encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)


def load_text(root: Path, spec: BackboneSpec) -> OfficialText:
    """Tokenizers and text encoders of a base model, frozen.

    Raises:
        ValueError: a folder or file is missing, damaged, or of another encoder; the message names it.
    """
    encoders, texts = [], []
    for name, tokenizer, encoder in zip(
        spec.text.numbered(TEXT_ENCODER), spec.text.numbered(TOKENIZER), spec.text.encoders, strict=True
    ):
        for folder in (root / name, root / tokenizer):
            if not folder.is_dir():
                raise SourceError(f"{folder}: missing; the text of {spec.name} needs it")
        half = any((root / name).glob("*.fp16*"))
        encoders.append(load_official_encoder(root / name, encoder, "fp16" if half else None))
        texts.append(official_tokenizer_json(root / tokenizer, encoder.kind))
    return OfficialText(encoders, texts)


def _tensors(folder: Path, stem: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a folder's weights, one at a time."""
    files = _weight_files(folder, stem)
    for name in files.files:
        path = folder.parent / name
        read_header(path)  # a damaged file is named here
        with safe_open(path, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                yield key, opened.get_tensor(key)


def _weight_files(folder: Path, stem: str) -> WeightFiles:
    present: Collection[str] = [f"{folder.name}/{path.name}" for path in folder.iterdir()]
    files = weights_in(present, str(folder.parent), folder.name, stem, "base")
    if files.index is not None:
        holders = {tensor.name: Path(file).name for file in files.files for tensor in read_header(folder.parent / file)}
        check_index(folder.parent / files.index, holders)
    return files


def _check_denoiser_config(path: Path, spec: BackboneSpec) -> None:
    import diffusers

    if not path.is_file():
        raise SourceError(f"{path}: missing")
    config = stock_config(read_json(path))
    stock: Any = getattr(diffusers, FAMILIES[spec.family].official_class)
    written = str(read_json(path).get("_class_name", stock.__name__)).replace("MV2D", "2D").replace("MVModel", "Model")
    if _CLASS_NAMES.get(written, written) != stock.__name__:
        raise SourceError(f"{path}: describes a {written}, but {spec.name} is a {stock.__name__}")
    ours = {name: value for name, value in spec.denoiser.items() if name not in _COMPUTED}
    problems = differing_arguments(stock, ours, {name: v for name, v in config.items() if name not in _COMPUTED})
    if problems:
        raise SourceError(f"{path}: not the base model of {spec.name}: {', '.join(problems)}")
