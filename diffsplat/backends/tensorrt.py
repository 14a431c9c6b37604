"""TensorRT engines on a CUDA card, by `tensorrt` or `tensorrt_rtx`: the engine's description says which.

Each optimisation profile has an execution context. Only one runs at a time, so all share one piece of device memory.
A call sets shapes and addresses and enqueues the engine on torch's current stream; it neither waits nor copies.
"""

import logging
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsplat.backends.devices import cuda_capability
from diffsplat.backends.engine_file import EngineInfo, import_tensorrt, installed_modules
from diffsplat.export_record import GraphRecord
from diffsplat.graph import Backend, DeviceType, Precision
from diffsplat.integrity import BundleError

_log = logging.getLogger(__name__)


def check(device: DeviceType) -> str | None:
    """Why no installed module of TensorRT can be loaded; None if one can."""
    reasons = []
    for name in installed_modules():
        try:
            import_tensorrt(name)
        except ValueError as error:
            reasons.append(str(error))
        else:
            return None
    return "; ".join(reasons)


def load(name: str, folder: Path, record: GraphRecord, threads: int, device: torch.device) -> "TensorRTGraph":
    """The graph from the engine of its record.

    Raises:
        BundleError: the engine is damaged, or was built by another version of TensorRT or for another card.
    """
    return TensorRTGraph(name, folder / record.file, device)


class TensorRTGraph:
    """A graph run by TensorRT.

    Args:
        name: name of the graph.
        engine: its engine; the description lies beside it.
        device: the card.

    Raises:
        BundleError: see `load`.
    """

    backend: Backend = "tensorrt"

    def __init__(self, name: str, engine: Path, device: torch.device) -> None:
        self.name = name
        self.device = device
        info = EngineInfo.read(engine)
        self.precision: Precision = info.precision
        self.signature = info.signature
        self.profiles = info.profiles
        check_fits(engine, info, ".".join(map(str, cuda_capability(device.index))))
        trt = import_tensorrt(info.module)
        self._logger = _logger(trt, name)
        self._runtime = trt.Runtime(self._logger)  # must outlive its engine
        with torch.cuda.device(device):
            with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self._engine = self._runtime.deserialize_cuda_engine(content)
            if self._engine is None:
                raise BundleError(f"{engine}: graph {name!r}: {info.module} cannot load this engine, see its log")
            check_engine(self._engine, info, engine)
            self._memory = torch.empty(max(self._engine.device_memory_size_v2, 1), dtype=torch.uint8, device=device)
            self._contexts = [self._context(trt, index) for index in range(len(info.profiles))]

    def _context(self, trt: Any, profile: int) -> Any:
        context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        assert context is not None, self.name
        context.set_device_memory(self._memory.data_ptr(), self._memory.nbytes)
        stream = torch.cuda.current_stream(self.device)
        assert context.set_optimization_profile_async(profile, stream.cuda_stream), (self.name, profile)
        stream.synchronize()  # the context may be used on another stream
        return context

    def __call__(self, *inputs: Tensor) -> Any:
        """Enqueue on the current stream. ValueError if number, type, device or shape of the inputs does not fit."""
        sizes = self.signature.check(inputs, self.device)
        context = self._contexts[self._profile(inputs)]
        held = [tensor.contiguous() for tensor in inputs]  # memory of torch's allocator: free for this stream only
        outputs = self.signature.empty_outputs(sizes, self.device)
        for tensor, value in zip(self.signature.inputs, held, strict=True):
            if not context.set_input_shape(tensor.name, tuple(value.shape)):
                raise ValueError(f"graph {self.name!r}, input {tensor.name!r}: shape {list(value.shape)} refused")
            context.set_tensor_address(tensor.name, value.data_ptr())
        for tensor, value in zip(self.signature.outputs, outputs, strict=True):
            context.set_tensor_address(tensor.name, value.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
            raise RuntimeError(f"graph {self.name!r}: TensorRT could not enqueue it, see its log")
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _profile(self, inputs: tuple[Tensor, ...]) -> int:
        """Index of the first profile that holds the shapes."""
        shapes = {tensor.name: tuple(value.shape) for tensor, value in zip(self.signature.inputs, inputs, strict=True)}
        for index, profile in enumerate(self.profiles):
            if all(profile[name].holds(shape) for name, shape in shapes.items()):
                return index
        first = self.signature.inputs[0].name
        low, high = self.profiles[0][first].smallest, self.profiles[-1][first].largest
        raise ValueError(
            f"graph {self.name!r}: shapes {shapes} are outside the engine's profiles, {first} is {low} .. {high}"
        )


def check_fits(engine: Path, info: EngineInfo, capability: str) -> None:
    """Refuse an engine of another version of TensorRT, or for another card.

    Raises:
        BundleError: it is one, or its module is not installed; the message says what to do.
    """
    what = f"{engine}: graph {info.graph!r}"
    try:
        installed = import_tensorrt(info.module).__version__
    except ValueError as error:
        raise BundleError(f"{what}: {error}") from None
    if installed != info.version:
        raise BundleError(f"{what}: built by {info.module} {info.version}, installed is {installed}: export again")
    if capability not in info.capabilities:
        built_for = ", ".join(info.capabilities)
        raise BundleError(f"{what}: built for compute capability {built_for}, this card has {capability}: export again")


def check_engine(engine: Any, info: EngineInfo, path: Path) -> None:
    """Compare a loaded engine with its description; BundleError names what differs."""
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    expected = {tensor.name for tensor in (*info.signature.inputs, *info.signature.outputs)}
    if names != expected:
        raise BundleError(f"{path}: has tensors {sorted(names)}, its description says {sorted(expected)}")
    for index, profile in enumerate(info.profiles):
        for name, shapes in profile.items():
            built = [tuple(shape) for shape in engine.get_tensor_profile_shape(name, index)]
            if built != [shapes.smallest, shapes.best, shapes.largest]:
                raise BundleError(f"{path}: profile {index} of {name!r} is {built}, its description says {shapes}")


def _logger(trt: Any, graph: str) -> Any:
    """TensorRT's messages as log records."""
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            _log.log(levels.get(severity, logging.DEBUG), "graph %s: %s", graph, message)

    return Logger()
