"""A TensorRT engine on disk: `<graph>.engine`, and beside it `<graph>.engine.json`, which says what the engine is.

TensorRT can read an engine only on a card that it was built for. The description can be read anywhere, and tells an
engine of another version or card before TensorRT is asked.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from diffsplat.backends.signature import Signature
from diffsplat.graph import Precision
from diffsplat.integrity import BundleError, check_seal, read_json, verify_file, write_sealed

TensorRTModule = Literal["tensorrt", "tensorrt_rtx"]
# Module -> extra of pyproject. TensorRT for data-centre cards and all others; TensorRT-RTX builds without a card.
EXTRAS: Mapping[TensorRTModule, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
SUFFIX = ".engine"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """Shapes of one input: smallest, the one that kernels are chosen for, and largest."""

    smallest: Shape
    best: Shape
    largest: Shape

    def holds(self, shape: Shape) -> bool:
        """Whether `shape` lies in the range."""
        return len(shape) == len(self.smallest) and all(
            low <= size <= high for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        )


Profile = Mapping[str, ShapeRange]  # optimisation profile: the range of every input


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is: everything that its cache key is made of, and what was measured when it was built."""

    graph: str
    graph_hash: str  # of the ONNX file and its external weights
    module: TensorRTModule
    version: str
    capabilities: tuple[str, ...]  # compute capabilities of the cards that it runs on: "8.9"
    precision: Precision
    profiles: tuple[Profile, ...]
    signature: Signature
    layers: int  # of the network before fusion
    build_s: float
    file: Mapping[str, Any]  # {"sha256", "bytes"}

    def write(self, engine: Path) -> Path:
        """Write the description beside its engine; returns its path."""
        path = description(engine)
        write_sealed(path, asdict(self))
        return path

    @classmethod
    def read(cls, engine: Path) -> "EngineInfo":
        """The description of an engine; verifies both files.

        Raises:
            BundleError: one of them is missing, damaged or edited; the message names it.
        """
        path = description(engine)
        try:
            values = read_json(path)
        except ValueError as error:
            raise BundleError(str(error)) from None
        check_seal(path, values)
        try:
            info = cls._parse({name: value for name, value in values.items() if name != "sha256"})
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: not the description of an engine ({type(error).__name__}: {error})") from None
        verify_file(engine.parent, path.name, engine.name, info.file)
        return info

    @classmethod
    def _parse(cls, values: dict[str, Any]) -> "EngineInfo":
        info = cls(**values)
        return replace(
            info,
            capabilities=tuple(info.capabilities),
            profiles=tuple({name: _range(each) for name, each in profile.items()} for profile in values["profiles"]),
            signature=Signature.from_dict(values["signature"]),
        )


def description(engine: Path) -> Path:
    """The file that describes an engine."""
    return engine.with_name(engine.name + ".json")


def _range(values: Mapping[str, Any]) -> ShapeRange:
    return ShapeRange(*(tuple(values[name]) for name in ("smallest", "best", "largest")))


def installed_modules() -> tuple[TensorRTModule, ...]:
    """Which of the two modules can be imported, without importing them."""
    return tuple(name for name in EXTRAS if find_spec(name))


def import_tensorrt(name: TensorRTModule) -> ModuleType:
    """The module; ValueError names the extra if it is not installed, and the cause if it cannot be loaded."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise ValueError(f"{name} is not installed: pip install 'diffsplat-triton[{EXTRAS[name]}]'") from None
    except (ImportError, OSError, RuntimeError) as error:  # its libraries do not fit the machine
        raise ValueError(f"{name} is installed but cannot be loaded: {error}") from None
