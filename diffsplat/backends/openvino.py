"""OpenVINO on the CPU: the ONNX file, compiled for the shapes that are asked for."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openvino
import torch
from torch import Tensor

from diffsplat.backends import OPENVINO_CACHE_VARIABLE
from diffsplat.backends.signature import Signature, TensorSignature
from diffsplat.export_record import GraphRecord
from diffsplat.graph import Backend, Graph, Precision

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES: dict[Precision, str] = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16)  # other batches are padded to the next one, or to a multiple of the last
# Each compiled shape holds weights of its own, reordered for it: at most so many, and at most so many bytes in all.
MAX_SHAPES = 16
MAX_WEIGHT_BYTES = 4 << 30


def load(name: str, folder: Path, record: GraphRecord, threads: int, device: torch.device) -> Graph:
    """The graph from the `.onnx` file of its record and the signature beside it."""
    assert device.type == "cpu", device
    return OpenVinoGraph(folder / record.file, Signature.read(folder, name), threads, record.precision)


def missing_precision(precision: Precision) -> str | None:
    """Why OpenVINO cannot compute in a precision on this CPU; None if it can."""
    found = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if _CAPABILITIES[precision] in found:
        return None
    needs = {"bf16": "avx512_bf16 or AMX", "fp16": "AMX-FP16"}[precision]
    return f"openvino has no {precision} on this CPU, which lacks {needs}: use fp32"


class OpenVinoGraph:
    """A graph run by OpenVINO on the CPU; it reads and writes torch tensors without copying them.

    OpenVINO is fastest by far for shapes that it knows when it compiles. So the first call with a new batch (see
    `BATCHES`) or a new number of tokens compiles the graph for it, which takes about a second for a network of 16 M
    parameters, or a third of that where `OPENVINO_CACHE_VARIABLE` names a folder that has it. When there is no room
    for another shape, all further ones share one graph of free shapes.

    Args:
        path: the `.onnx` file in float32.
        signature: its inputs and outputs.
        threads: threads of one call. They are not pinned to cores, because two processes of a server would be pinned to
            the same ones: measured with nano's denoiser in two processes on two cores, a call takes 310 ms, pinned 400,
            and 705 by ONNX Runtime, whose spinning threads cost it twice the CPU time. Idle threads sleep.
        precision: what it computes in; the weights are cast when the graph is compiled.

    Raises:
        ValueError: this CPU lacks the precision.
    """

    backend: Backend = "openvino"
    device = torch.device("cpu")

    def __init__(self, path: Path, signature: Signature, threads: int, precision: Precision = "fp32") -> None:
        if reason := missing_precision(precision):
            raise ValueError(f"graph {signature.graph!r}: {reason}")
        self.name = signature.graph
        self.precision: Precision = precision
        self._signature = signature
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "ENABLE_CPU_PINNING": False,
        }
        if cache := os.environ.get(OPENVINO_CACHE_VARIABLE):
            self._options["CACHE_DIR"] = cache
        self._core = openvino.Core()
        self._model = self._core.read_model(path)
        weights = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        self.max_shapes = min(MAX_SHAPES, max(1, MAX_WEIGHT_BYTES // weights))
        self._lock = threading.Lock()  # of the dictionary
        self._compiled: dict[tuple[tuple[str, int], ...], _Compiled] = {}  # by sizes of the free axes; () is any size

    def __call__(self, *inputs: Tensor) -> Any:
        """Run. Raises ValueError if the number, a type or a shape of the inputs does not fit the graph."""
        sizes = self._signature.check(inputs, self.device)
        batch = sizes[self._signature.batch_axis]
        padded = {**sizes, self._signature.batch_axis: padded_batch(batch)}
        rows = [
            _pad(tensor, padded_batch(batch)) if axes.axes[:1] == (self._signature.batch_axis,) else tensor
            for axes, tensor in zip(self._signature.inputs, inputs, strict=True)
        ]
        outputs = self._signature.empty_outputs(padded, self.device)
        self._for_sizes(padded).run([tensor.detach().contiguous() for tensor in rows], outputs)
        outputs = [output[:batch] for output in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    @property
    def shapes(self) -> int:
        """How many shapes it has been compiled for."""
        return len(self._compiled)

    def _for_sizes(self, sizes: dict[str, int]) -> "_Compiled":
        with self._lock:
            key = tuple(sizes.items())
            if key not in self._compiled and len(self._compiled) >= self.max_shapes:
                key = ()
            if key not in self._compiled:
                model = self._model.clone()
                if key:
                    model.reshape({
                        tensor.name: self._signature.shape(tensor, sizes) for tensor in self._signature.inputs
                    })  # fmt: skip
                self._compiled[key] = _Compiled(self._core.compile_model(model, "CPU", self._options), self._signature)
            return self._compiled[key]


class _Compiled:
    """The graph compiled for one shape. It runs one call at a time: its threads are all that a call may use."""

    def __init__(self, model: openvino.CompiledModel, signature: Signature) -> None:
        self._request = model.create_infer_request()
        self._signature = signature
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        with self._lock:
            self._bind(self._signature.inputs, inputs)
            self._bind(self._signature.outputs, outputs)
            self._request.infer()

    def _bind(self, names: Sequence[TensorSignature], tensors: Sequence[Tensor]) -> None:
        for named, tensor in zip(names, tensors, strict=True):
            self._request.set_tensor(named.name, openvino.Tensor(tensor.numpy(), shared_memory=True))


def padded_batch(batch: int) -> int:
    """The batch for which the graph is compiled to run `batch` rows."""
    largest = BATCHES[-1]
    return next((size for size in BATCHES if size >= batch), -(-batch // largest) * largest)


def _pad(tensor: Tensor, batch: int) -> Tensor:
    """Repeat the last row; it is cheap to compute with, which a row of zeros or of denormals need not be."""
    if len(tensor) == batch:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(batch - len(tensor), *tensor.shape[1:])])
