"""AOTInductor: a graph compiled to machine code at export, loaded without a compiler."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsplat.backends.signature import Signature
from diffsplat.export_record import GraphRecord
from diffsplat.graph import Backend, Graph, Precision


def load(name: str, folder: Path, record: GraphRecord, threads: int, device: torch.device) -> Graph:
    """The graph from the `.pt2` file of its record. `threads` counts for the whole process, as for eager torch.

    Raises:
        ValueError: it was compiled for another processor or by another torch.
    """
    target, compiled = target_of(device), json.loads(target_path(folder, name).read_text(encoding="utf-8"))
    if target != compiled:
        words = [", ".join(f"{key} {value}" for key, value in each.items()) for each in (compiled, target)]
        raise ValueError(f"graph {name!r} was compiled for {words[0]}, this is {words[1]}: export again")
    torch.set_num_threads(threads)
    return CompiledGraph(folder / record.file, Signature.read(folder, name), record.precision, device)


class CompiledGraph:
    """A graph compiled by AOTInductor for any batch and, where it has some, any number of tokens.

    A batch that is larger than the compiled code allows runs in equal parts.

    Args:
        path: the `.pt2` file.
        signature: its inputs and outputs.
        precision: what it computes in.
        device: that it was compiled for.
    """

    backend: Backend = "aotinductor"

    def __init__(self, path: Path, signature: Signature, precision: Precision, device: torch.device) -> None:
        self.name = signature.graph
        self.precision: Precision = precision
        self.device = device
        self._signature = signature
        index = device.index if device.type == "cuda" else -1
        self._run = torch._inductor.aoti_load_package(str(path), device_index=index)

    def __call__(self, *inputs: Tensor) -> Any:
        """Run. Raises ValueError if the number, a type or a shape of the inputs does not fit the graph."""
        sizes = self._signature.check(inputs, self.device)
        batch = sizes[self._signature.batch_axis]
        parts = -(-batch // self._signature.largest.get(self._signature.batch_axis, batch))
        inputs = tuple(tensor.detach().contiguous() for tensor in inputs)
        if parts == 1:
            return self._call(inputs)
        split = [self._signature.part(inputs, batch * i // parts, batch * (i + 1) // parts) for i in range(parts)]
        outputs = [self._call(part) for part in split]
        if isinstance(outputs[0], Tensor):
            return torch.cat(outputs)
        return tuple(torch.cat(each) for each in zip(*outputs, strict=True))

    def _call(self, inputs: tuple[Tensor, ...]) -> Any:
        with torch.no_grad():
            outputs = self._run(*inputs)
        return outputs if isinstance(outputs, Tensor) else tuple(outputs)


def target_of(device: torch.device) -> dict[str, str]:
    """What compiled code depends on: the processor's instructions or the card's architecture, and torch's version."""
    if device.type == "cpu":
        processor = f"{torch.backends.cpu.get_cpu_capability()} CPUs"
    else:
        processor = "cards of compute capability " + ".".join(map(str, torch.cuda.get_device_capability(device)))
    return {"processor": processor, "torch": torch.__version__}


def target_path(folder: Path, graph: str) -> Path:
    """Where an export writes `target_of` down."""
    return folder / f"{graph}.target.json"
