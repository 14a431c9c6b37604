"""Official text encoders: folders of the hub -> our networks.

text_encoder/    config.json  model.safetensors | model.fp16.safetensors | an index and its shards
text_encoder_2/  text_encoder_3/                   likewise
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from diffsplat.backbones.text import TextEncoderSpec
from diffsplat.backends.precision import cast_network, without_parameters
from diffsplat.graph import Precision
from diffsplat.integrity import read_json
from diffsplat.text.encoders import build_encoder
from diffsplat.text.official_names import equal_tensors, our_name


def load_official_encoder(
    folder: str | os.PathLike[str],
    encoder: TextEncoderSpec,
    variant: str | None = None,
    precision: Precision = "fp32",
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Build a text encoder in evaluation mode with the weights of an official folder, strictly.

    Args:
        folder: official folder, `text_encoder` or a numbered one.
        encoder: specification, which must agree with the folder's `config.json`.
        variant: "fp16", or None for the files without a variant.
        precision: type of the weights, cast tensor by tensor: T5-XXL takes 9.5 GB in bf16 and never more.
        device: where they lie.

    Raises:
        ValueError: a file is missing, damaged, of another model, or its tensors differ from the network's; the message
            names it.
    """
    folder = Path(folder)
    check_official_config(folder, encoder)
    files = official_weight_files(folder, variant)  # fails before a large module is built
    with without_parameters():
        module = build_encoder(encoder, folder.name)
    cast_network(module, precision, device=device)
    _fill(module, folder, files)
    return module.eval().requires_grad_(False)


def official_weight_files(folder: Path, variant: str | None = None) -> tuple[str, ...]:
    """Names of the weight files of an official folder. Raises ValueError if there are none."""
    infix = f".{variant}" if variant else ""
    single, index = f"model{infix}.safetensors", f"model.safetensors.index{infix}.json"
    if (folder / single).is_file():
        return (single,)
    if not (folder / index).is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("model*"))) or "no model*"
        raise ValueError(f"{folder}: must hold {single} or {index}, has {found}")
    return tuple(sorted(set(read_json(folder / index)["weight_map"].values())))


def _fill(module: nn.Module, folder: Path, files: Iterable[str]) -> None:
    """Copy weights into the module, tensor by tensor."""
    state = module.state_dict()
    filled: dict[str, str] = {}  # our name -> its file
    problems = []
    for file in files:
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                for name in tensors.keys():
                    target = our_name(name)
                    if target is None:
                        continue
                    shape = tensors.get_slice(name).get_shape()
                    if target not in state:
                        problems.append(f"unexpected {name} in {file}")
                    elif shape != list(state[target].shape):
                        problems.append(f"{name} in {file} is {shape}, not {list(state[target].shape)}")
                    elif target in filled:
                        if not equal_tensors(state[target], tensors.get_tensor(name).to(state[target].dtype)):
                            problems.append(f"{name} in {file} differs from {target} in {filled[target]}")
                    else:
                        state[target].copy_(tensors.get_tensor(name))
                        filled[target] = file
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / file}: not readable: {error}") from None
    problems += [f"missing {name}" for name in state if name not in filled]
    if problems:
        raise ValueError(f"{folder}: does not fit: {', '.join(problems)}")


def check_official_config(folder: Path, encoder: TextEncoderSpec) -> None:
    """Raise ValueError if settings that shapes do not show, such as heads or activations, differ from `config.json`."""
    from transformers import CLIPTextConfig, T5Config

    official: Any = (T5Config if encoder.kind == "t5" else CLIPTextConfig).from_dict(read_json(folder / "config.json"))
    differing = [
        f"{name} is {getattr(official, name)!r}, not {value!r}"
        for name, value in encoder.config.items()
        if getattr(official, name) != value
    ]
    if differing:
        raise ValueError(f"{folder / 'config.json'}: another model: {', '.join(differing)}")
