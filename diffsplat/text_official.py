"""Official text encoders: folders of the hub -> our networks.

    text_encoder/    config.json  model.safetensors | model.fp16.safetensors | an index and its shards
    text_encoder_2/  text_encoder_3/                   likewise

Our state dicts have the names of these files. transformers 5 itself has others: it drops `text_model.` from CLIP
models without a projection and lists T5's embedding twice.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffsplat.backbones.text import EncoderKind, TextEncoderSpec

_EMBEDDING, _TIED = "shared.weight", "encoder.embed_tokens.weight"  # T5


def our_name(name: str) -> str | None:
    """Our name of a tensor of a text encoder, official or transformers 5's; None for what is not a weight."""
    if name.endswith("embeddings.position_ids"):  # a constant that old files hold
        return None
    if name == _TIED:
        return _EMBEDDING
    is_bare_clip = name.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    return f"text_model.{name}" if is_bare_clip else name


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's state dict under our names, in the order given.

    Raises:
        ValueError: two tensors have the same name of ours and are not equal; the message names both.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = our_name(name)
        if target is None:
            continue
        if target in ours and not _equal(ours[target], tensor):
            raise ValueError(f"{name}: differs from another tensor called {target}")
        ours.setdefault(target, tensor)
    return ours


def to_transformers(kind: EncoderKind, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the names of transformers 5's CLIPTextModel, ...WithProjection or T5EncoderModel."""
    if kind == "clip":
        return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    if kind == "t5":
        return {**state, _TIED: state[_EMBEDDING]}
    return dict(state)


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool((first == second).all())


def load_official_encoder(
    folder: str | os.PathLike[str], encoder: TextEncoderSpec, variant: str | None = None
) -> nn.Module:
    """Build a text encoder in float32 and evaluation mode with the weights of an official folder, strictly.

    Args:
        folder: folder of the hub, `text_encoder` or one of its numbered neighbours.
        encoder: what to build; the folder's `config.json` must say the same.
        variant: which files, "fp16" or by default those without a variant.

    Raises:
        ValueError: a file is missing, damaged, of another model, or does not hold exactly the network's tensors; the
            message names it.
    """
    from transformers.initialization import no_init_weights  # here: what serves exported graphs does not need it

    from diffsplat.text import build_encoder

    folder = Path(folder)
    check_official_config(folder, encoder)
    files = official_weight_files(folder, variant)  # before a large module is built for nothing
    with no_init_weights():
        module = build_encoder(encoder, folder.name)
    _fill(module, folder, files)
    return module.eval().requires_grad_(False)


def official_weight_files(folder: Path, variant: str | None = None) -> tuple[str, ...]:
    """Names of the files that hold the weights of an official folder. ValueError when they are not there."""
    infix = f".{variant}" if variant else ""
    single, index = f"model{infix}.safetensors", f"model.safetensors.index{infix}.json"
    if (folder / single).is_file():
        return (single,)
    if not (folder / index).is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("model*"))) or "no model*"
        raise ValueError(f"{folder}: must hold {single} or {index}, has {found}")
    return tuple(sorted(set(_read_json(folder / index)["weight_map"].values())))


def _fill(module: nn.Module, folder: Path, files: Iterable[str]) -> None:
    """Copy weights, file by file and tensor by tensor, into the module's own memory."""
    state = module.state_dict()
    filled: dict[str, str] = {}  # our name -> the file it came from
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
                        if not _equal(state[target], tensors.get_tensor(name).to(state[target].dtype)):
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
    """What shapes do not show, such as heads and activations, must be the same; absent keys mean the defaults."""
    from transformers import CLIPTextConfig, T5Config

    official: Any = (T5Config if encoder.kind == "t5" else CLIPTextConfig).from_dict(_read_json(folder / "config.json"))
    differing = [
        f"{name} is {getattr(official, name)!r}, not {value!r}"
        for name, value in encoder.config.items()
        if getattr(official, name) != value
    ]
    if differing:
        raise ValueError(f"{folder / 'config.json'}: another model: {', '.join(differing)}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not readable: {error}") from None
