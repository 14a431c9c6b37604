"""ONNX Runtime on the CPU."""

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from diffsplat.export_record import GraphRecord
from diffsplat.graph import Backend, Graph, Precision

_NUMPY_TYPES = {torch.float32: "float32", torch.int64: "int64"}  # names that IOBinding takes


def load(name: str, folder: Path, record: GraphRecord, threads: int, device: torch.device) -> Graph:
    """The graph from the `.onnx` file of its record."""
    assert device.type == "cpu", device
    return OnnxGraph(name, folder / record.file, threads)


class OnnxGraph:
    """A graph run by ONNX Runtime on the CPU; it reads and writes torch tensors without copying them.

    Args:
        name: name of the graph.
        path: the `.onnx` file. Every free dimension of its outputs must be one of its inputs' (by symbolic name).
        threads: threads of one call. They spin between the operators of a call, which is 10 % faster, and sleep as
            soon as it ends, because the processes of a server share the cores.
    """

    backend: Backend = "onnxruntime"
    device = torch.device("cpu")
    precision: Precision = "fp32"

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
        """Run. Raises ValueError if the number, a type or a shape of the inputs does not fit the graph."""
        if len(inputs) != len(self._inputs):
            raise ValueError(f"graph {self.name!r} takes {len(self._inputs)} inputs, not {len(inputs)}")
        binding = self._session.io_binding()
        sizes: dict[str, int] = {}
        held = [tensor.detach().contiguous() for tensor in inputs]  # keeps the memory alive during the run
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
    """Whether `shape` fits; records the size of each symbolic dimension in `sizes`."""
    return len(expected) == len(shape) and all(
        dim == size if isinstance(dim, int) else sizes.setdefault(dim, size) == size
        for dim, size in zip(expected, shape, strict=True)
    )
