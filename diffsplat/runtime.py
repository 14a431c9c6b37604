"""Run an exported graph: one signature, several back ends.

`python -m export` writes, beside every graph of a stage, which back end was measured to be the faster one. A stage
calls `load_graph(version_folder, "denoiser")` and gets something callable; the choice stands in `export.json` and in
the log, never in the stage. Graphs take tensors by position, float32 (token ids: int64), and return one or a few, all
on the CPU.
"""

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import onnxruntime
import torch
from diffsplat_client.contract import CONTRACT_VERSION
from torch import Tensor, nn

from diffsplat.backbones import BackboneSpec
from diffsplat.bundle import Bundle, BundleError, load_network, verify_file

Backend = Literal["onnxruntime", "torch"]
RECORD = "export.json"

_log = logging.getLogger(__name__)
_NUMPY_TYPES = {torch.float32: "float32", torch.int64: "int64"}  # as IOBinding wants them


class Graph(Protocol):
    """One network of a stage, ready to run."""

    @property
    def name(self) -> str:
        """Its name in `networks.graph_modules`."""

    @property
    def backend(self) -> Backend:
        """What runs it."""

    def __call__(self, *inputs: Tensor) -> Any:
        """Inputs by position, as the table in `export/graphs.py` lists them -> its output, or a tuple of several."""


@dataclass(frozen=True)
class GraphRecord:
    """What `export` found out about one graph."""

    file: str  # in the version folder: <graph>.onnx, or the network's weights (their index, if split) for torch
    files: dict[str, dict[str, Any]]  # that file, and what it refers to -> {"sha256", "bytes"}
    backend: Backend
    parity: float | None  # ONNX against torch: largest error / largest value; None when ONNX was not written
    ms: dict[Backend, float]  # median milliseconds of a call for one request; empty when the back end was forced


@dataclass(frozen=True)
class ExportRecord:
    """`export.json` of a version folder: everything a stage needs to know about what it serves."""

    bundle: str  # name
    digest: str
    spec: BackboneSpec
    contract_version: int
    graphs: dict[str, GraphRecord]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> "ExportRecord":
        """Read a version folder's record.

        Raises:
            BundleError: it is missing, unreadable, or of another contract version; the message names the file.
        """
        path = Path(folder) / RECORD
        if not path.is_file():
            raise BundleError(f"{path}: missing; `python -m export` writes it")
        try:
            values = json.loads(path.read_text())
            record = cls(
                bundle=str(values["bundle"]),
                digest=str(values["digest"]),
                spec=BackboneSpec.from_dict(values["spec"]),
                contract_version=int(values["contract_version"]),
                graphs={str(name): GraphRecord(**graph) for name, graph in values["graphs"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path}: not a valid export record ({type(error).__name__}: {error})") from None
        if record.contract_version != CONTRACT_VERSION:
            raise BundleError(
                f"{path}: written for contract version {record.contract_version}, this code speaks {CONTRACT_VERSION}: "
                "export again"
            )
        return record


class TorchGraph:
    """A graph run by eager torch, in float32 and evaluation mode."""

    backend: Backend = "torch"

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module.eval()

    def __call__(self, *inputs: Tensor) -> Any:
        """Run without gradients (not in inference mode: the result may be updated in place by its owner)."""
        with torch.no_grad():
            return self.module(*inputs)


class OnnxGraph:
    """A graph run by ONNX Runtime on the CPU; reads torch's memory and writes into tensors of torch, without copies.

    Args:
        name: name of the graph.
        path: the `.onnx` file. Every free dimension of its outputs must be one of its inputs' (by symbolic name).
        threads: threads of one call. They spin between the operators of a call, which is a tenth faster, and sleep
            as soon as it is over: the processes of a server share the cores.
    """

    backend: Backend = "onnxruntime"

    def __init__(self, name: str, path: Path, threads: int) -> None:
        self.name = name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = self._session.get_inputs()
        self._outputs = self._session.get_outputs()
        known = {dim for node in self._inputs for dim in node.shape}
        for output in self._outputs:
            assert all(isinstance(dim, int) or dim in known for dim in output.shape), (output.name, output.shape)

    def __call__(self, *inputs: Tensor) -> Any:
        """Run; ValueError when an input's number, type or shape does not fit the graph."""
        if len(inputs) != len(self._inputs):
            raise ValueError(f"graph {self.name!r} takes {len(self._inputs)} inputs, not {len(inputs)}")
        binding = self._session.io_binding()
        sizes: dict[str, int] = {}
        held = [tensor.detach().contiguous() for tensor in inputs]  # alive until the run is over
        for node, tensor in zip(self._inputs, held, strict=True):
            numpy_type = _NUMPY_TYPES.get(tensor.dtype, str(tensor.dtype))
            if node.type != _ONNX_TYPES.get(numpy_type) or not _shape_fits(node.shape, tensor.shape, sizes):
                raise ValueError(
                    f"graph {self.name!r}, input {node.name!r}: {numpy_type} {list(tensor.shape)} given, "
                    f"{node.type} {node.shape} expected"
                )
            binding.bind_input(node.name, "cpu", 0, numpy_type, list(tensor.shape), tensor.data_ptr())
        outputs = []
        for node in self._outputs:
            shape = [dim if isinstance(dim, int) else sizes[dim] for dim in node.shape]
            outputs.append(torch.empty(shape, dtype=torch.float32))
            binding.bind_output(node.name, "cpu", 0, "float32", shape, outputs[-1].data_ptr())
        self._session.run_with_iobinding(binding)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


_ONNX_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


def _shape_fits(expected: list[int | str], shape: torch.Size, sizes: dict[str, int]) -> bool:
    """Whether `shape` fits; remembers what each symbolic dimension stands for in `sizes`."""
    return len(expected) == len(shape) and all(
        dim == size if isinstance(dim, int) else sizes.setdefault(dim, size) == size
        for dim, size in zip(expected, shape, strict=True)
    )


def available_cores() -> int:
    """Cores this process may run on: the threads of a graph unless a caller says otherwise."""
    return len(os.sched_getaffinity(0))


def bundle_graph(bundle: Bundle, name: str) -> Graph:
    """A graph straight from a bundle, run by torch: nothing needs to be exported."""
    return bundle_graphs(bundle, [name])[name]


def bundle_graphs(bundle: Bundle, names: Iterable[str]) -> dict[str, Graph]:
    """Several graphs of a bundle; those of one network share its weights."""
    from diffsplat.networks import build_graph_module, graph_modules  # heavy: see there

    owners = {name: graph_modules(bundle.spec)[name].network for name in names}
    networks = {owner: bundle.load(owner) for owner in dict.fromkeys(owners.values())}
    return {
        name: TorchGraph(name, build_graph_module(name, bundle.spec, networks[owner])) for name, owner in owners.items()
    }


def load_graph(folder: str | os.PathLike[str], name: str, threads: int | None = None) -> Graph:
    """One graph of a version folder: see `load_graphs`."""
    return load_graphs(folder, [name], threads)[name]


def load_graphs(folder: str | os.PathLike[str], names: Iterable[str], threads: int | None = None) -> dict[str, Graph]:
    """Load graphs of a version folder with the back ends that `export` chose; torch graphs of one network share it.

    Args:
        folder: version folder with `export.json`.
        names: of the graphs, keys of `networks.graph_modules`.
        threads: threads of one call, by default the available cores. For torch this sets the count of the process.

    Raises:
        BundleError: the record or a graph's file is missing, truncated or tampered with; the message names the file.
    """
    folder = Path(folder)
    record = ExportRecord.read(folder)
    threads = threads or available_cores()
    graphs: dict[str, Graph] = {}
    networks: dict[str, nn.Module] = {}
    for name in names:
        if name not in record.graphs:
            raise BundleError(f"{folder / RECORD}: has no graph {name!r}, only {', '.join(record.graphs)}")
        graph = record.graphs[name]
        for file, expected in graph.files.items():
            verify_file(folder, RECORD, file, expected)
        why = ", ".join(f"{backend} {ms:.2f} ms" for backend, ms in graph.ms.items()) or "forced"
        _log.info("graph %s of %s: %s, %d threads (at export: %s)", name, record.bundle, graph.backend, threads, why)
        if graph.backend == "onnxruntime":
            graphs[name] = OnnxGraph(name, folder / graph.file, threads)
            continue
        from diffsplat.networks import build_graph_module, graph_modules  # heavy: see there

        torch.set_num_threads(threads)
        owner = graph_modules(record.spec)[name].network
        if owner not in networks:
            networks[owner] = load_network(folder, graph.files, owner, record.spec)
        graphs[name] = TorchGraph(name, build_graph_module(name, record.spec, networks[owner]))
    return graphs
