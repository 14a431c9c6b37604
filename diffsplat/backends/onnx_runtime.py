"""ONNX Runtime: on the CPU, or on a GPU by its providers for CUDA and TensorRT."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from diffsplat.backends.onnx_providers import CPU, CUDA, Provider, missing_provider, on_stream, read_provider
from diffsplat.backends.signature import Signature, TensorSignature
from diffsplat.export_record import GraphRecord
from diffsplat.graph import Backend, Graph, Precision

_CPU = torch.device("cpu")
_TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}  # of a graph's interface, as IOBinding calls them


def load(name: str, folder: Path, record: GraphRecord, threads: int, device: torch.device) -> Graph:
    """The graph from the `.onnx` file of its record; on a GPU with the provider that the export wrote down.

    Raises:
        ValueError: this ONNX Runtime lacks the provider; the message names the extra to install.
    """
    path = folder / record.file
    if device.type == "cpu":
        return OnnxGraph(name, path, threads, record.precision)
    if reason := missing_provider(device.type):
        raise ValueError(f"graph {name!r}: {reason}")
    return OnnxCudaGraph(name, path, threads, record.precision, device, read_provider(folder, name))


class OnnxGraph:
    """A graph run by ONNX Runtime; it reads and writes torch tensors without copying them.

    Args:
        name: name of the graph.
        path: the `.onnx` file. Every free dimension of its outputs must be one of its inputs' (by symbolic name).
        threads: threads of one call. They spin between the operators of a call, which is 10 % faster, and sleep as
            soon as it ends, because the processes of a server share the cores.
        precision: of the file; its inputs and outputs are float32 in any.
        device: where inputs and outputs lie.
        providers: of ONNX Runtime, in the order in which they may take operators.
    """

    backend: Backend = "onnxruntime"

    def __init__(
        self,
        name: str,
        path: Path,
        threads: int,
        precision: Precision = "fp32",
        device: torch.device = _CPU,
        providers: Sequence[Provider] = ((CPU, {}),),
    ) -> None:
        self.name = name
        self.precision: Precision = precision
        self.device = device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors
        names, settings = [each for each, _ in providers], [dict(values) for _, values in providers]
        self._session = onnxruntime.InferenceSession(str(path), options, names, settings)
        assert self._session.get_providers()[0] == names[0], (self._session.get_providers(), names)
        self._signature = Signature(name, _tensors(self._session.get_inputs()), _tensors(self._session.get_outputs()))
        known = {axis for tensor in self._signature.inputs for axis in tensor.axes}
        for output in self._signature.outputs:
            assert all(isinstance(axis, int) or axis in known for axis in output.axes), output

    def __call__(self, *inputs: Tensor) -> Any:
        """Run. Raises ValueError if the number, a type, a shape or the device of the inputs does not fit the graph."""
        sizes = self._signature.check(inputs, self.device)
        binding = self._session.io_binding()
        place = (self.device.type, self.device.index or 0)
        held = [tensor.detach().contiguous() for tensor in inputs]  # keeps the memory alive during the run
        for named, tensor in zip(self._signature.inputs, held, strict=True):
            binding.bind_input(named.name, *place, named.dtype, list(tensor.shape), tensor.data_ptr())
        outputs = self._signature.empty_outputs(sizes, self.device)
        for named, output in zip(self._signature.outputs, outputs, strict=True):
            binding.bind_output(named.name, *place, named.dtype, list(output.shape), output.data_ptr())
        self._run(binding, [*held, *outputs])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _run(self, binding: onnxruntime.IOBinding, tensors: Sequence[Tensor]) -> None:
        """Run on bound memory, which belongs to `tensors`."""
        self._session.run_with_iobinding(binding)


class OnnxCudaGraph(OnnxGraph):
    """A graph run by ONNX Runtime on a GPU, on a stream of its own that waits for torch's and is waited for by it.

    torch's default stream is the null stream, which ONNX Runtime takes for "none given" and replaces by a stream of
    its own that the host must wait for. Events between two streams need no host.

    Args:
        provider: CUDA, or TensorRT, which leaves to CUDA what it cannot run.
    """

    def __init__(
        self, name: str, path: Path, threads: int, precision: Precision, device: torch.device, provider: Provider
    ) -> None:
        self._stream = torch.cuda.Stream(device)
        providers = on_stream([provider, (CUDA, {})][: 1 if provider[0] == CUDA else 2], device, self._stream)
        super().__init__(name, path, threads, precision, device, providers)
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._lock = threading.Lock()  # a stream takes one call at a time

    def _run(self, binding: onnxruntime.IOBinding, tensors: Sequence[Tensor]) -> None:
        with self._lock:
            caller = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(caller)
            for tensor in tensors:
                tensor.record_stream(self._stream)
            self._session.run_with_iobinding(binding, self._options)
            caller.wait_stream(self._stream)


def _tensors(nodes: Sequence[onnxruntime.NodeArg]) -> tuple[TensorSignature, ...]:
    """Names, types and axes as the file has them."""
    return tuple(TensorSignature(node.name, _TYPES[node.type], tuple(node.shape)) for node in nodes)
