"""ONNX file -> TensorRT engine, strongly typed: every tensor computes in the type that the graph says.

`tensorrt` and `tensorrt_rtx` have the same Python API. What differs: TensorRT measures kernels on the card that it
builds for, so that the card must be there; TensorRT-RTX builds for named compute capabilities without any card, and
compiles its kernels when an engine is loaded. TensorRT-RTX has no capability 9.0 (H100, H200).
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from diffsplat.backends.devices import BF16_CAPABILITY, cuda_capability, cuda_count
from diffsplat.backends.engine_file import (
    EXTRAS,
    SUFFIX,
    EngineInfo,
    Profile,
    TensorRTModule,
    description,
    import_tensorrt,
    installed_modules,
)
from diffsplat.backends.signature import Signature
from diffsplat.graph import Precision
from diffsplat.integrity import describe_file
from diffsplat.serving.engine.policy import EnginePolicy
from export.common import ExportError
from export.engines.cache import EngineCache, default_folder, engine_key, file_hash
from export.engines.job import BuildJob
from export.engines.profiles import Limits, profiles
from export.engines.signature import graph_signature
from export.graph_spec import GraphSpec

_DTYPES = {"FLOAT": "float32", "INT64": "int64"}  # TensorRT's names of the types that a graph's interface has
Progress = Callable[[float], None]  # part of a build that is done, 0 .. 1


@dataclass(frozen=True)
class Target:
    """What engines are built for: a module of TensorRT and the compute capabilities of cards, such as "8.9"."""

    module: TensorRTModule
    capabilities: tuple[str, ...]


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in the cache."""

    path: Path
    info: EngineInfo
    new: bool  # False: it was there already

    @property
    def files(self) -> list[Path]:
        """The engine and its description."""
        return [self.path, description(self.path)]


def build(job: BuildJob) -> list[Path]:
    """The engine of a graph for the card of the job, from the default cache: see `candidates.BUILDERS`."""
    target = find_target([".".join(map(str, cuda_capability(job.device.index)))], job.precision, job.graph.name)
    limits = Limits(EnginePolicy().max_batch)
    return build_engine(
        job.graph, job.onnx(job.precision), job.precision, target, limits, EngineCache(default_folder())
    ).files


def find_target(capabilities: list[str], precision: Precision, graph: str) -> Target:
    """Which module builds for these compute capabilities here.

    TensorRT is taken where it is installed and the card is there, else TensorRT-RTX.

    Args:
        capabilities: such as "8.9"; none means the first card, or without a card all that TensorRT-RTX builds for.
        precision: what the engines compute in; older cards have no bf16.
        graph: what it is for; named in errors.

    Raises:
        ExportError: neither is installed, or the one that is cannot build for them.
    """
    installed = installed_modules()
    if not installed:
        extras = " or ".join(f"pip install 'diffsplat-triton[{extra}]'" for extra in EXTRAS.values())
        raise ExportError(f"graph {graph!r}: no TensorRT builder is installed: {extras}")
    cards = {".".join(map(str, cuda_capability(index))) for index in range(cuda_count())}
    if not capabilities and cards:
        capabilities = [".".join(map(str, cuda_capability(0)))]
    if "tensorrt" in installed and len(capabilities) == 1 and capabilities[0] in cards:
        return Target("tensorrt", tuple(capabilities))
    wanted = ", ".join(capabilities) or "any"
    if "tensorrt_rtx" not in installed:
        raise ExportError(
            f"graph {graph!r}: tensorrt builds only for a card of this machine, one capability at a time; asked for "
            f"{wanted}, there {'are ' + ', '.join(sorted(cards)) if cards else 'is no card'}. For other cards: "
            f"pip install 'diffsplat-triton[{EXTRAS['tensorrt_rtx']}]'"
        )
    known = list(_rtx_capabilities(import_builder("tensorrt_rtx", graph)))
    have_bf16 = [each for each in known if tuple(map(int, each.split("."))) >= BF16_CAPABILITY]
    for capability in capabilities:
        if precision == "bf16" and capability in known and capability not in have_bf16:
            raise ExportError(
                f"graph {graph!r}: compute capability {capability} has no bf16, which {have_bf16[0]} and newer have; "
                "use fp16 or fp32"
            )
        if capability not in known:
            raise ExportError(
                f"graph {graph!r}: tensorrt_rtx builds for compute capabilities {', '.join(known)}, not for "
                f"{capability}; where there is such a card: pip install 'diffsplat-triton[{EXTRAS['tensorrt']}]'"
            )
    return Target("tensorrt_rtx", tuple(dict.fromkeys(capabilities or (have_bf16 if precision == "bf16" else known))))


def import_builder(name: TensorRTModule, graph: str) -> ModuleType:
    """The module; ExportError names the graph and the extra to install."""
    try:
        return import_tensorrt(name)
    except ValueError as error:
        raise ExportError(f"graph {graph!r}: {error}") from None


def _rtx_capabilities(trt: Any) -> dict[str, Any]:
    """Compute capability -> TensorRT-RTX's name of it: 12.0 is SM120."""
    names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    found = {f"{name[2:-1]}.{name[-1]}": getattr(trt.ComputeCapability, name) for name in names}
    return dict(sorted(found.items(), key=lambda item: float(item[0])))


def build_engine(
    graph: GraphSpec,
    onnx: list[Path],
    precision: Precision,
    target: Target,
    limits: Limits,
    cache: EngineCache,
    progress: Progress = lambda done: None,
) -> BuiltEngine:
    """The engine of a graph from the cache, built if it is not there.

    Args:
        graph: its spec; the engine is compared with it.
        onnx: its ONNX file, and the file of its weights where they are apart.
        precision: what the ONNX file computes in.
        target: what to build with and for.
        limits: what the service asks of the engine.
        cache: where engines are kept.
        progress: called often during a build.

    Raises:
        ExportError: the graph cannot be built, or the cache is damaged or not writable; the message names the graph.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; the cache has no trace of the build.
    """
    trt = import_builder(target.module, graph.name)
    ranges, graph_hash = profiles(graph, limits), file_hash(onnx)
    key = engine_key(graph_hash, target.module, trt.__version__, target.capabilities, precision, ranges)
    if (found := cache.find(graph.name, key)) is not None:
        return BuiltEngine(*found, new=False)
    with cache.adding(graph.name, key) as folder:
        path = folder / f"{graph.name}{SUFFIX}"
        started = time.monotonic()
        network = _Build(trt, graph.name, onnx[0], target, ranges, precision).run(path, progress)
        info = EngineInfo(
            *(graph.name, graph_hash, target.module, trt.__version__, target.capabilities, precision, ranges),
            signature=graph_signature(graph),
            layers=network.num_layers,
            build_s=round(time.monotonic() - started, 2),
            file=describe_file(path),
        )
        _compare(network, info.signature)
        info.write(path)
    found = cache.find(graph.name, key)
    assert found is not None
    return BuiltEngine(*found, new=True)


class _Build:
    """One build; holds the objects of TensorRT that must outlive the call."""

    def __init__(
        self, trt: Any, graph: str, onnx: Path, target: Target, ranges: tuple[Profile, ...], precision: Precision
    ) -> None:
        self.trt = trt
        self.graph = graph
        self.logger = _logger(trt)
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = trt.OnnxParser(self.network, self.logger)  # keeps the weights that the network refers to
        self._parse(onnx)
        self.config = self.builder.create_builder_config()
        if precision == "fp32":
            self.config.clear_flag(trt.BuilderFlag.TF32)  # which keeps 10 of 23 bits
        if target.module == "tensorrt_rtx":
            known = _rtx_capabilities(trt)
            self.config.num_compute_capabilities = len(target.capabilities)
            for index, capability in enumerate(target.capabilities):
                self.config.set_compute_capability(known[capability], index)
        for each in ranges:
            profile = self.builder.create_optimization_profile()
            for name, shapes in each.items():
                profile.set_shape(name, shapes.smallest, shapes.best, shapes.largest)
            if self.config.add_optimization_profile(profile) < 0:
                raise self._error(f"profile {each} refused")

    def _parse(self, onnx: Path) -> None:
        if self.parser.parse_from_file(str(onnx)):  # finds external weights beside the file
            return
        first = self.parser.get_error(0)
        if operator := first.node_operator():
            self.logger.errors.clear()  # the parser's dump of the node
            raise self._error(f"operator {operator} at {first.node_name()} is refused: {first.desc().strip()}")
        raise self._error(f"{onnx} cannot be parsed")

    def run(self, path: Path, progress: Progress) -> Any:
        """Build, write the engine, and return the network."""
        with _interrupts_deferred() as interrupted:
            self.config.progress_monitor = _monitor(self.trt, progress, interrupted)
            engine = self.builder.build_serialized_network(self.network, self.config)
        if engine is None:
            raise self._error("the build failed")
        with path.open("wb") as file:
            file.write(engine)
        return self.network

    def _error(self, what: str) -> ExportError:
        said = "; ".join(dict.fromkeys(self.logger.errors))
        module = f"{self.trt.__name__} {self.trt.__version__}"
        return ExportError(f"graph {self.graph!r}: {module}: {what}{f' ({said})' if said else ''}")


def _compare(network: Any, signature: Signature) -> None:
    """The tensors of what was built must be the graph's; ExportError names the first that is not."""
    built = [network.get_input(i) for i in range(network.num_inputs)]
    built += [network.get_output(i) for i in range(network.num_outputs)]
    actual = [(each.name, _DTYPES.get(each.dtype.name, each.dtype.name), tuple(each.shape)) for each in built]
    expected = [
        (each.name, each.dtype, tuple(axis if isinstance(axis, int) else -1 for axis in each.axes))
        for each in (*signature.inputs, *signature.outputs)
    ]
    if actual != expected:
        wrong = next(pair for pair in zip_longest(actual, expected) if pair[0] != pair[1])
        raise ExportError(f"graph {signature.graph!r}: its engine has tensor {wrong[0]}, expected {wrong[1]}")


def _logger(trt: Any) -> Any:
    """A logger that keeps errors for the message of the exception."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # without a card the builder reports the missing driver after every other error
            if severity <= trt.ILogger.ERROR and "CUDA driver version" not in message:
                self.errors.append(message.strip())

    return Logger()


def _monitor(trt: Any, progress: Progress, interrupted: Callable[[], bool]) -> Any:
    """Reports the part that is done, phases within phases, and ends the build after a signal."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, list[int]] = {}  # running, outermost first -> [steps done, steps]
            self.furthest = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = [0, max(num_steps, 1)]

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.phases:
                self.phases[phase_name][0] = step + 1
            done, part = 0.0, 1.0
            for finished, steps in self.phases.values():
                done += part * min(finished, steps) / steps
                part /= steps
            self.furthest = max(self.furthest, min(done, 1.0))
            progress(self.furthest)
            return not interrupted()

    return Monitor()


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[Callable[[], bool]]:
    """Note SIGINT and SIGTERM, and deliver them when the block ends: an exception must not pass through TensorRT."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread can set handlers
        return
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if came:
            signal.raise_signal(came[0])
