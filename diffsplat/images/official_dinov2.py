"""Official weights of DINOv2 with registers -> our `DinoV2`, from which a new ElevEst starts.

dinov2_vitb14_reg4_pretrain.pth        Meta's own file: our names
config.json  model.safetensors         a folder of the hub (facebook/dinov2-with-registers-base)
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from diffsplat.images.dinov2 import DinoConfig, DinoV2
from diffsplat.integrity import read_json

_WEIGHTS = "model.safetensors"
# the hub's names -> ours; queries, keys and values are separate there
_RENAMED = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.attention\.(?:o_proj|output\.dense)\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
)
_PART = re.compile(r"^encoder\.layer\.(\d+)\.attention\.(?:attention\.)?([qkv])(?:_proj|uery|ey|alue)\.(weight|bias)$")


def load_official_dinov2(path: Path, config: DinoConfig) -> DinoV2:
    """Build a backbone in float32 with official weights, strictly.

    Args:
        path: Meta's `.pth` file, or a folder in the layout of the hub.
        config: architecture, which the weights must have.

    Raises:
        ValueError: a file is missing or damaged, or its weights are of another architecture; the message names it.
    """
    state = _folder_state(path, config) if path.is_dir() else _file_state(path)
    network = DinoV2(config)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = [
        f"{name} is {found.get(name, 'missing')}, not {expected.get(name, 'expected')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if differing:
        raise ValueError(f"{path}: does not fit: {', '.join(differing[:4])}{' …' if len(differing) > 4 else ''}")
    network.load_state_dict(state)
    return network


def _file_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: missing; must be a .pth file of DINOv2 with registers, or a folder of the hub")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not readable as weights: {error}") from None


def _folder_state(folder: Path, config: DinoConfig) -> dict[str, Tensor]:
    _check_config(folder / "config.json", config)
    try:
        official = load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / _WEIGHTS}: not readable: {error}") from None
    state: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}  # our name -> q, k, v
    for name, tensor in official.items():
        part = _PART.match(name)
        if part:
            block, letter, kind = part.groups()
            joined.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[letter] = tensor
            continue
        for pattern, ours in _RENAMED:
            renamed, count = re.subn(pattern, ours, name)
            if count:
                name = renamed
                break
        state[name] = tensor
    for name, parts in joined.items():
        if len(parts) == 3:
            state[name] = torch.cat([parts[letter] for letter in "qkv"])
    return state


def _check_config(path: Path, config: DinoConfig) -> None:
    """Settings that shapes do not show, or show badly."""
    official: dict[str, Any] = read_json(path)
    wanted = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_blocks,
        "num_attention_heads": config.num_heads,
        "patch_size": config.patch_size,
        "image_size": config.image_size,
        "num_register_tokens": config.num_registers,
        "mlp_ratio": config.mlp_ratio,
        "use_swiglu_ffn": False,
    }
    differing = [
        f"{name} is {official[name]!r}, not {value!r}"
        for name, value in wanted.items()
        if name in official and official[name] != value
    ]
    if differing:
        raise ValueError(f"{path}: another network: {', '.join(differing)}")
