"""What a graph takes and gives: as its file says, or `<graph>.signature.json` beside a file that does not."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsplat.integrity import BundleError, read_json

_DTYPES = {"float32": torch.float32, "int64": torch.int64}


@dataclass(frozen=True)
class TensorSignature:
    """Name, type and axes of one tensor; a string is a free axis."""

    name: str
    dtype: str  # a key of _DTYPES
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    """The tensors of a graph; the first axis of its first input is the batch, which is only ever a first axis."""

    graph: str
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    largest: Mapping[str, int] = field(default_factory=dict)  # sizes of free axes that the file limits

    @property
    def batch_axis(self) -> str:
        """Name of the batch axis."""
        axis = self.inputs[0].axes[0]
        assert isinstance(axis, str), self
        return axis

    def check(self, inputs: Sequence[Tensor], device: torch.device) -> dict[str, int]:
        """Sizes of the free axes. ValueError if the number, type, shape or device of the inputs does not fit."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"graph {self.graph!r} takes {len(self.inputs)} inputs, not {len(inputs)}")
        sizes: dict[str, int] = {}
        for wanted, tensor in zip(self.inputs, inputs, strict=True):
            fits = len(wanted.axes) == tensor.ndim and all(
                axis == size if isinstance(axis, int) else sizes.setdefault(axis, size) == size
                for axis, size in zip(wanted.axes, tensor.shape, strict=True)
            )
            if not fits or tensor.dtype != _DTYPES[wanted.dtype] or tensor.device != device:
                raise ValueError(
                    f"graph {self.graph!r}, input {wanted.name!r}: {str(tensor.dtype).removeprefix('torch.')} "
                    f"{list(tensor.shape)} given on {tensor.device}, {wanted.dtype} {list(wanted.axes)} expected on "
                    f"{device}, with one size for each name"
                )
        for axis, largest in self.largest.items():
            if axis != self.batch_axis and sizes[axis] > largest:
                raise ValueError(f"graph {self.graph!r}: {sizes[axis]} {axis} given, at most {largest} are possible")
        return sizes

    def part(self, inputs: Sequence[Tensor], start: int, end: int) -> tuple[Tensor, ...]:
        """Rows start ... end - 1 of the batch."""
        return tuple(
            tensor[start:end] if wanted.axes[:1] == (self.batch_axis,) else tensor
            for wanted, tensor in zip(self.inputs, inputs, strict=True)
        )

    def shape(self, tensor: TensorSignature, sizes: dict[str, int]) -> list[int]:
        """Shape of one of its tensors for sizes of the free axes."""
        return [axis if isinstance(axis, int) else sizes[axis] for axis in tensor.axes]

    def empty_outputs(self, sizes: dict[str, int], device: torch.device) -> list[Tensor]:
        """Memory for the outputs of a call."""
        return [torch.empty(self.shape(output, sizes), device=device) for output in self.outputs]

    def write(self, folder: Path) -> Path:
        """Write it into a folder; returns the file."""
        path = signature_path(folder, self.graph)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, folder: Path, graph: str) -> "Signature":
        """Read it. BundleError if it is missing or not valid."""
        path = signature_path(folder, graph)
        try:
            return cls.from_dict(read_json(path))
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: not a valid signature ({type(error).__name__}: {error})") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Signature":
        """The signature in a JSON object; ValueError, KeyError or TypeError if it is none."""
        tensors = _tensors(values["inputs"]), _tensors(values["outputs"])
        return cls(str(values["graph"]), *tensors, dict(values["largest"]))


def signature_path(folder: Path, graph: str) -> Path:
    """Where the signature of a graph lies."""
    return folder / f"{graph}.signature.json"


def _tensors(values: list[dict[str, Any]]) -> tuple[TensorSignature, ...]:
    return tuple(TensorSignature(value["name"], value["dtype"], tuple(value["axes"])) for value in values)
