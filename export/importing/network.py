"""One network of an official checkpoint: expected tensors, found tensors, and the precision to store them in."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffsplat.backbones import BackboneSpec
from diffsplat.backbones.text import TEXT_ENCODER
from diffsplat.networks import network_builders
from diffsplat.text.official_encoders import check_official_config
from diffsplat.text.official_names import our_name
from export.importing.check import (
    FLOATS,
    KeyReport,
    SourceTensor,
    check_denoiser_config,
    check_index,
    check_vae_config,
    compare_keys,
    read_header,
)
from export.importing.copy import TORCH_TYPES, CopiedTensor
from export.importing.layout import SourceError, WeightFiles

PRECISIONS: Mapping[str, str] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
# Rounding their weights to 16 bits changes their outputs by more than the tolerance: see
# tests/export/test_importing_precision.py. They are small and determine how splats look.
_ALWAYS_FP32 = ("gsvae", "gsrecon", "image_encoder", "elevest")


@dataclass(frozen=True)
class FoundNetwork:
    """A network that was found, with a report on its problems."""

    tensors: tuple[CopiedTensor, ...]
    sources: dict[str, Path]  # name in its origin -> path
    precision: str  # in which floating-point weights are stored
    report: KeyReport

    @property
    def nbytes(self) -> int:
        """Bytes in the bundle."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def source_bytes(self) -> int:
        """Bytes of the source files."""
        return sum(path.stat().st_size for path in self.sources.values())


def expected_tensors(spec: BackboneSpec, network: str) -> dict[str, torch.Tensor]:
    """State dict of a network on the meta device: names, shapes and types without values."""
    with torch.device("meta"):
        return dict(network_builders(spec)[network]().state_dict())


def renaming(network: str) -> Callable[[str], str | None]:
    """Function from official names of tensors to ours; None for tensors that the network does not use."""
    if network.startswith(TEXT_ENCODER):
        return our_name
    return _image_encoder_name if network == "image_encoder" else lambda name: name


_ATTENTION_NAMES = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}  # SD1.5's file has these old names


def _image_encoder_name(name: str) -> str | None:
    return None if name.startswith(("decoder.", "post_quant_conv.")) else image_vae_name(name)


def image_vae_name(name: str) -> str:
    """Our name of a tensor of an image autoencoder: that of present files."""
    return re.sub(
        r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(\.)",
        lambda match: match[1] + _ATTENTION_NAMES[match[2]] + match[3],
        name,
    )


def check_config(spec: BackboneSpec, network: str, path: Path) -> None:
    """Check settings that shapes do not show against the spec. SourceError names both values."""
    if network == "denoiser":
        check_denoiser_config(spec, path)
    elif network == "image_encoder":
        check_vae_config(spec, path)
    elif network.startswith(TEXT_ENCODER):
        encoder = dict(zip(spec.text.numbered(TEXT_ENCODER), spec.text.encoders, strict=True))[network]
        try:
            check_official_config(path.parent, encoder)
        except ValueError as error:
            raise SourceError(f"{error} (for the {network} of {spec.name})") from None


def find_network(spec: BackboneSpec, name: str, files: WeightFiles, root: Path, precision: str) -> FoundNetwork:
    """Read the headers of a network's files and compare them with the spec.

    Args:
        spec: the requested backbone.
        name: name of the network.
        files: files of its weights.
        root: folder to which their names are relative.
        precision: the requested one, a key of PRECISIONS.

    Raises:
        SourceError: a file is damaged, or shards disagree with each other or with their index.
    """
    expected, rename = expected_tensors(spec, name), renaming(name)
    holders: dict[str, str] = {}
    found: dict[str, tuple[int, ...]] = {}
    wrong_types: list[str] = []
    kept: list[tuple[str, str, SourceTensor]] = []
    for file in files.files:
        for tensor in read_header(root / file):
            if tensor.name in holders:
                raise SourceError(f"{root / file}: holds {tensor.name}, and so does {holders[tensor.name]}")
            holders[tensor.name] = Path(file).name
            key = rename(tensor.name)
            if key is None:
                continue
            found[key] = tensor.shape
            kept.append((key, file, tensor))
            if key in expected and not _fits_type(tensor, expected[key]):
                wrong_types.append(f"{key} is of type {tensor.dtype}, not {expected[key].dtype}")
    if files.index is not None:
        check_index(root / files.index, holders)
    report = compare_keys({key: tuple(tensor.shape) for key, tensor in expected.items()}, found)
    report = KeyReport(report.missing, report.unexpected, (*report.misshaped, *wrong_types))
    stored = _stored_precision(name, precision, [tensor.dtype for _, _, tensor in kept])
    tensors = tuple(
        CopiedTensor(key, file, tensor, PRECISIONS[stored] if tensor.dtype in FLOATS else tensor.dtype)
        for key, file, tensor in kept
    )
    return FoundNetwork(tensors, {file: root / file for file in files.files}, stored, report)


def _fits_type(tensor: SourceTensor, expected: torch.Tensor) -> bool:
    if tensor.dtype in FLOATS:
        return expected.is_floating_point()
    return TORCH_TYPES.get(tensor.dtype) == expected.dtype


def _stored_precision(network: str, asked: str, held: Sequence[str]) -> str:
    """The requested precision, or that of the source if it is lower: the same values in less space."""
    wanted = "fp32" if network in _ALWAYS_FP32 else asked
    types = {dtype for dtype in held if dtype in FLOATS}
    if wanted == "fp32" and len(types) == 1:
        return {"F16": "fp16", "BF16": "bf16"}.get(types.pop(), wanted)
    return wanted
