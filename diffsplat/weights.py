"""Weights of a network in a folder: one file, or shards and an index when one file would be too large.

    denoiser.safetensors                    a single file,
    denoiser-00001-of-00003.safetensors     or shards in the layout of diffusers and transformers
    denoiser.safetensors.index.json         {"metadata": {"total_size": bytes}, "weight_map": {key: shard}}

Shards are read one after the other and tensor by tensor into the module's own memory, so that loading needs no more
memory than the module and one mapped file.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffsplat.integrity import BundleError

MAX_SHARD_BYTES = 16_000_000  # keeps committed bundles within the limits of git hosts


def write_weights(
    folder: Path, network: str, module: nn.Module, dtype: torch.dtype, max_file_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the weights of a module; at most one file's share of them is copied at a time.

    Args:
        folder: where to write.
        network: name of the network and prefix of the file names.
        module: source of the weights, written in the order of its state dict.
        dtype: type to which floating-point tensors are cast.
        max_file_bytes: limit of a file, header included; only a file with a single larger tensor exceeds it.

    Raises:
        ValueError: `max_file_bytes` is not positive.
    """
    from huggingface_hub import split_torch_state_dict_into_shards  # imported here: serving does not need it

    if max_file_bytes < 1:
        raise ValueError(f"max_file_bytes: {max_file_bytes} given, must be at least 1")
    state = module.state_dict()
    stored = {
        key: torch.empty_like(tensor, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device="meta")
        for key, tensor in state.items()
    }
    split = split_torch_state_dict_into_shards(
        stored,
        filename_pattern=f"{network}{{suffix}}.safetensors",
        max_shard_size=max_file_bytes - _header_bytes(stored),
    )
    for file, keys in split.filename_to_tensors.items():
        part = {key: state[key].to(stored[key].dtype).contiguous().cpu() for key in keys}
        save_file(part, folder / file)
    if split.is_sharded:
        write_index(folder, network, split.tensor_to_filename, split.metadata["total_size"])


def write_index(folder: Path, network: str, weight_map: Mapping[str, str], total_bytes: int) -> str:
    """Write the index of a network's shards, key -> name of the shard that holds it; returns its file name."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)}
    (folder / _index_name(network)).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return _index_name(network)


def _header_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Upper bound for the header of a safetensors file with `tensors` or a part of them."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    header = {
        key: {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [total, total]}
        for key, tensor in tensors.items()
    }
    return len(json.dumps(header)) + 16  # plus its length, and padding to eight bytes


def holds_network(listed: Iterable[str], network: str) -> bool:
    """Whether any of these file names belongs to a network."""
    pattern = rf"{re.escape(network)}(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
    return any(re.fullmatch(pattern, name) for name in listed)


def weight_files(folder: Path, listed: Collection[str], network: str) -> tuple[str, ...]:
    """Names of a network's files: the single file, or the index followed by its shards.

    Args:
        folder: folder of the files.
        listed: names of the folder's verified files; no other file is opened.
        network: name of the network.

    Raises:
        BundleError: the network has no files, or index and shards disagree; the message names the file.
    """
    single, index = f"{network}.safetensors", _index_name(network)
    shards = {name for name in listed if re.fullmatch(rf"{re.escape(network)}-\d+-of-\d+\.safetensors", name)}
    if single in listed and (index in listed or shards):
        raise BundleError(f"{folder / single}: lies beside shards of the same network; remove one of the two")
    if single in listed:
        return (single,)
    if index not in listed:
        if shards:
            raise BundleError(f"{folder / index}: not listed, but {min(shards)} is")
        raise BundleError(f"{folder}: has no network {network!r}, only {', '.join(listed)}")
    named = set(_read_weight_map(folder / index).values())
    for name in sorted(named - shards):
        raise BundleError(f"{folder / name}: named by {index}, but not a listed shard of {network!r}")
    for name in sorted(shards - named):
        raise BundleError(f"{folder / name}: {index} places nothing in it")
    return (index, *sorted(shards))


def load_weights(module: nn.Module, folder: Path, listed: Collection[str], network: str) -> None:
    """Copy a network's weights into a module, cast to its types; keys and shapes must match exactly.

    Args:
        module: target; unchanged unless everything fits.
        folder: folder of the files.
        listed: names of the folder's files that were verified.
        network: name of the network.

    Raises:
        BundleError: a file is not readable, index and shards disagree, or keys are missing, unexpected or of
            another shape; the message names the file and the keys.
    """
    first, *shards = weight_files(folder, listed, network)
    state = module.state_dict()  # shares the module's memory
    holders: dict[str, str] = {}  # key -> the file that holds it
    problems = []
    for name in shards or [first]:
        with _opened(folder / name) as file:
            for key in file.keys():
                if key in holders:
                    raise BundleError(f"{folder / name}: holds {key}, and so does {holders[key]}")
                holders[key] = name
                shape = file.get_slice(key).get_shape()
                if key not in state:
                    problems.append(f"unexpected {key} in {name}")
                elif shape != list(state[key].shape):
                    problems.append(f"{key} in {name} is {shape}, not {list(state[key].shape)}")
    if shards:
        _check_index(folder, first, holders)
    problems += [f"missing {key}" for key in state if key not in holders]
    if problems:
        raise BundleError(f"{folder / first}: does not fit the spec: {', '.join(problems)}")
    for name in shards or [first]:
        with _opened(folder / name) as file:
            for key in file.keys():
                state[key].copy_(file.get_tensor(key))


def _index_name(network: str) -> str:
    return f"{network}.safetensors.index.json"


def _read_weight_map(path: Path) -> dict[str, str]:
    """Key -> name of the shard that holds it."""
    try:
        return {key: str(name) for key, name in json.loads(path.read_text())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: not a valid index ({type(error).__name__}: {error})") from None


def _check_index(folder: Path, index: str, holders: Mapping[str, str]) -> None:
    """Raise BundleError unless every key is in the shard that the index names."""
    weight_map = _read_weight_map(folder / index)
    for key in sorted(weight_map.keys() | holders.keys()):
        said, found = weight_map.get(key), holders.get(key)
        if said is None:
            raise BundleError(f"{folder / str(found)}: holds {key}, which {index} does not know")
        if said != found:
            raise BundleError(f"{folder / said}: does not hold {key}, {index} says it does")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a memory-mapped file of weights; its errors become a BundleError that names the file."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: not readable: {error}") from None
