"""Where a repository is served: the device that was asked for, if the repository fits it and it has room.

Everything is checked before the server starts: an error here costs the user a second, one at the first request an hour.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffsplat_client.contract import RECONSTRUCT

from diffsplat.backends import unavailable
from diffsplat.backends.devices import (
    DeviceError,
    DeviceFacts,
    check_memory,
    check_precision,
    device_type,
    inspect_apart,
)
from diffsplat.export_record import RECORD, ExportRecord
from diffsplat.integrity import BundleError
from diffsplat.serving.errors import ServerStartError

AUTO = "auto"
ON_DEVICE = ("encode", "denoise", "decode", "rasterize", RECONSTRUCT)  # the models that compute on the device
CONTEXT_BYTES = 500e6  # that a process takes of a card for its CUDA context, kernels and cuBLAS, whatever it loads


@dataclass(frozen=True)
class Placement:
    """A repository on a device."""

    facts: DeviceFacts
    needed_bytes: float  # what its models take of the device, estimated

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""
        return self.facts.device

    @property
    def card(self) -> int | None:
        """Index of the card, None for the CPU."""
        return int(self.device.partition(":")[2]) if self.device != "cpu" else None


def place(repository: Path, asked: str, instances: Mapping[str, int], version: str) -> Placement:
    """Choose the device and check it.

    Args:
        repository: folder written by `python -m export`.
        asked: "auto" (the kind of device that the repository was exported for), "cpu", "cuda" or "cuda:N".
        instances: model -> its number of processes.
        version: the one to serve.

    Raises:
        ServerStartError: the device does not exist, lacks a precision, or has too little memory, the repository was
            exported for another kind, or a back end is not installed. The message says what to do.
    """
    records = _records(repository, version)
    kinds = {record.device for record in records.values()}
    if len(kinds) > 1:
        raise ServerStartError(f"{repository}: its models were exported for different devices; export again")
    kind = kinds.pop() if kinds else "cpu"  # without records the models are not ours, and need no device
    name = kind if asked == AUTO else asked
    try:
        if device_type(name) != kind:
            raise DeviceError(f"it was exported for {kind}, not for {name}: {_again(repository, name)}")
        facts = inspect_apart(name)
    except DeviceError as error:
        fix = f"; {_again(repository, 'cpu')}" if asked == AUTO else ""
        raise ServerStartError(f"{repository}: {error}{fix}") from None
    graphs = {model: _graph_bytes(records[model]) for model in ON_DEVICE if model in records}
    graphs["denoise"] = graphs.get("denoise", 0.0) + graphs.get("decode", 0.0)  # it decodes previews
    process = CONTEXT_BYTES if kind == "cuda" else 0.0
    needed = sum(instances[model] * (size + process) for model, size in graphs.items() if model in records)
    try:
        for record in records.values():
            _check_graphs(record, facts)
        check_memory(facts, needed, "serving it")
    except DeviceError as error:
        raise ServerStartError(f"{repository}: {error}") from None
    return Placement(facts, needed)


def _records(repository: Path, version: str) -> dict[str, ExportRecord]:
    """Model -> its record of a version. Those that cannot be read are left to their stage, which says why."""
    records = {}
    for path in repository.glob(f"*/{version}/{RECORD}"):
        try:
            records[path.parents[1].name] = ExportRecord.parse(path)
        except BundleError:
            continue
    return records


def _check_graphs(record: ExportRecord, facts: DeviceFacts) -> None:
    for name, graph in record.graphs.items():
        if reason := unavailable(graph.backend, graph.device, graph.precision):
            raise DeviceError(f"graph {name!r} was exported for {graph.backend}: {reason}")
        check_precision(facts, graph.precision)


def _graph_bytes(record: ExportRecord) -> float:
    """Memory of the graphs of a stage. Torch graphs of one network share its weights, so that these count once."""
    sizes: dict[tuple[str, str], float] = {}
    for graph in record.graphs.values():
        key = (graph.file, graph.precision)
        sizes[key] = max(sizes.get(key, 0.0), graph.chosen.memory_mb or graph.chosen.megabytes or 0.0)
    return sum(sizes.values()) * 1e6


def _again(repository: Path, device: str) -> str:
    """How to export for another device."""
    return f"export again with `python -m export BUNDLE --out {json.dumps(str(repository))} --device {device}`"
