"""Copy weights from safetensors files to those of a bundle in small pieces, cast on the way.

No file is ever held in memory: sources are read once, from start to end, and hashed while they are read; targets get
their headers first and are then filled.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from diffsplat.weights import write_index
from export.importing.check import FLOATS, SourceTensor
from export.importing.layout import SourceError

PIECE_BYTES = 1 << 25
MAX_WEIGHTS_FILE_BYTES = 4_000_000_000

TORCH_TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class CopiedTensor:
    """A tensor to copy into a bundle."""

    key: str  # its name in the bundle
    file: str  # source file
    source: SourceTensor
    dtype: str  # stored type, safetensors' name

    @property
    def nbytes(self) -> int:
        """Bytes in the bundle."""
        count = (self.source.end - self.source.begin) // TORCH_TYPES[self.source.dtype].itemsize
        return count * TORCH_TYPES[self.dtype].itemsize


@dataclass(frozen=True)
class _Place:
    """Position of a tensor in the target files."""

    shard: int
    offset: int  # bytes from the start of the file
    dtype: str


def copy_network(
    folder: Path,
    network: str,
    tensors: Sequence[CopiedTensor],
    sources: Mapping[str, Path],
    max_file_bytes: int,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> tuple[list[str], dict[str, str]]:
    """Write the weights of a network.

    Args:
        folder: where to write, in the layout of `diffsplat.weights`.
        network: name of the network and prefix of the file names.
        tensors: tensors to write; those with the same key must be equal, and the first is written.
        sources: all source files, name -> path.
        max_file_bytes: limit of a file, header included; only a file with a single larger tensor exceeds it.
        on_bytes: called with the size of each piece that was read.

    Returns:
        Names of the files written, and sha256 of every source.

    Raises:
        SourceError: a source changed or has values that are not finite, a value does not fit the precision, or tensors
            with the same key differ.
    """
    unique: dict[str, CopiedTensor] = {}
    for tensor in tensors:
        unique.setdefault(tensor.key, tensor)
    # widest types first, so that every tensor is aligned
    ordered = sorted(unique.values(), key=lambda tensor: -TORCH_TYPES[tensor.dtype].itemsize)
    shards = _split(ordered, max_file_bytes)
    width = "" if len(shards) == 1 else f"-of-{len(shards):05d}"
    names = [f"{network}{f'-{i:05d}{width}' if width else ''}.safetensors" for i in range(1, len(shards) + 1)]
    places: dict[tuple[str, str], _Place] = {}
    with ExitStack() as stack:
        targets = [stack.enter_context((folder / name).open("wb")) for name in names]
        for number, (target, shard) in enumerate(zip(targets, shards, strict=True)):
            header = _header(shard)
            target.write(header)
            offset = len(header)
            for tensor in shard:
                places[tensor.file, tensor.source.name] = _Place(number, offset, tensor.dtype)
                offset += tensor.nbytes
            target.truncate(offset)
        twins = _twins(tensors)
        digests: dict[tuple[str, str], str] = {}
        hashes = {
            name: _copy_file(name, path, _of_file(tensors, name), targets, places, digests, twins, on_bytes)
            for name, path in sources.items()
        }
    for first, second in twins.items():
        if digests[first] != digests[second]:
            raise SourceError(f"{first[1]} in {first[0]}: differs from {second[1]}, but must be the same tensor")
    written = list(names)
    if len(shards) > 1:
        weight_map = {tensor.key: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        written.append(write_index(folder, network, weight_map, sum(tensor.nbytes for tensor in ordered)))
    return written, hashes


def _split(tensors: Sequence[CopiedTensor], max_file_bytes: int) -> list[list[CopiedTensor]]:
    """Fill files in the given order."""
    header = len(_header(tensors))  # upper bound for any part
    shards: list[list[CopiedTensor]] = [[]]
    used = header
    for tensor in tensors:
        if shards[-1] and used + tensor.nbytes > max_file_bytes:
            shards.append([])
            used = header
        shards[-1].append(tensor)
        used += tensor.nbytes
    return shards


def _header(tensors: Sequence[CopiedTensor]) -> bytes:
    """Start of a safetensors file: length, then JSON padded to eight bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        offsets = [at, at + tensor.nbytes]
        entries[tensor.key] = {"dtype": tensor.dtype, "shape": list(tensor.source.shape), "data_offsets": offsets}
        at = offsets[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _twins(tensors: Sequence[CopiedTensor]) -> dict[tuple[str, str], tuple[str, str]]:
    """(file, name) of every repeated key -> (file, name) of its first occurrence."""
    first: dict[str, tuple[str, str]] = {}
    twins = {}
    for tensor in tensors:
        place = (tensor.file, tensor.source.name)
        if first.setdefault(tensor.key, place) != place:
            twins[place] = first[tensor.key]
    return twins


def _of_file(tensors: Sequence[CopiedTensor], file: str) -> dict[str, CopiedTensor]:
    return {tensor.source.name: tensor for tensor in tensors if tensor.file == file}


def _copy_file(
    name: str,
    path: Path,
    tensors: Mapping[str, CopiedTensor],
    targets: Sequence[BinaryIO],
    places: Mapping[tuple[str, str], _Place],
    digests: dict[tuple[str, str], str],
    twins: Mapping[tuple[str, str], tuple[str, str]],
    on_bytes: Callable[[int], None],
) -> str:
    """Read one source to its end and copy its tensors into the bundle; returns the sha256 of the source."""
    whole = hashlib.sha256()
    buffer = bytearray(PIECE_BYTES)
    compared = {*twins, *twins.values()}
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.source.begin)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        at = 0
        for tensor in [*ordered, None]:
            for length in _pieces(
                size if tensor is None else tensor.source.begin, at
            ):  # hash what lies between tensors
                whole.update(_read(file, buffer, length, path))
                on_bytes(length)
                at += length
            if tensor is None:
                break
            own, place = hashlib.sha256(), places.get((name, tensor.source.name))
            for length in _pieces(tensor.source.end, at):
                piece = _read(file, buffer, length, path)
                whole.update(piece)
                if (name, tensor.source.name) in compared:
                    own.update(piece)
                if place is not None:
                    target = targets[place.shard]
                    written = at - tensor.source.begin
                    ratio = TORCH_TYPES[place.dtype].itemsize / TORCH_TYPES[tensor.source.dtype].itemsize
                    target.seek(place.offset + int(written * ratio))
                    target.write(_cast(piece, tensor, path))
                on_bytes(length)
                at += length
            digests[name, tensor.source.name] = f"{tensor.source.dtype} {own.hexdigest()}"
    return whole.hexdigest()


def _pieces(end: int, at: int) -> list[int]:
    """Lengths of the pieces from `at` to `end`."""
    return [min(PIECE_BYTES, end - start) for start in range(at, end, PIECE_BYTES)]


def _read(file: Any, buffer: bytearray, length: int, path: Path) -> memoryview:
    piece = memoryview(buffer)[:length]
    done = 0
    while done < length:
        count = file.readinto(piece[done:])
        if not count:
            raise SourceError(f"{path}: was truncated while it was read")
        done += count
    return piece


def _cast(piece: memoryview, tensor: CopiedTensor, path: Path) -> memoryview:
    if tensor.source.dtype not in FLOATS:
        return piece
    values = torch.frombuffer(piece, dtype=TORCH_TYPES[tensor.source.dtype])
    cast = values.to(TORCH_TYPES[tensor.dtype])
    if not bool(torch.isfinite(cast).all()):
        if not bool(torch.isfinite(values).all()):
            raise SourceError(f"{path}: {tensor.source.name} contains infinite or NaN values")
        raise SourceError(
            f"{path}: {tensor.source.name} contains {float(values.abs().max()):g}, too large for {tensor.dtype}: "
            "import with --precision bf16 or fp32"
        )
    return piece if cast is values else cast.view(torch.uint8).numpy().data
