"""A CUDA device that exists only as shapes: torch's FakeTensors, which a machine without a GPU can run stages on.

Mixing devices raises, and so does whatever needs a value: `.item()`, `bool(tensor)`, a boolean index. Tensors of the
host stay real, so that `start` can look at them; `transfer.copy` is replaced and counts.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffsplat.backbones import BackboneSpec
from diffsplat.backends import cuda_sync, transfer
from diffsplat.backends.eager import TorchGraph
from diffsplat.networks import build_graph_module, graph_modules, network_builders
from diffsplat.stages import rasterize

CUDA = torch.device("cuda", 0)


class HostTensorError(AssertionError):
    """An operation inside a step takes or makes a tensor of the host."""


class FakeCuda:
    """The device, and the transfers to and from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=False)
        self.transfers: list[tuple[str, tuple[int, ...]]] = []  # where to, and which shape
        self.waits = 0  # for a shape that depends on values
        monkeypatch.setattr(transfer, "copy", self._copy)
        monkeypatch.setattr(rasterize, "rows_where", self._rows_where)
        monkeypatch.setattr(cuda_sync.Pace, "mark", lambda pace: None)  # there is no stream to record an event on

    def _copy(self, tensor: Tensor, device: torch.device) -> Tensor:
        """To the host come zeros."""
        self.transfers.append((device.type, tuple(tensor.shape)))
        if device.type == "cuda":
            return self.tensor(tensor)
        with unset_fake_temporarily():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)

    def _rows_where(self, values: Tensor, keep: Tensor) -> Tensor:
        """Three quarters of the rows."""
        assert values.device == keep.device == CUDA and keep.dtype == torch.bool
        self.waits += 1
        return torch.ops.aten.slice.Tensor(values, 0, 0, len(values) * 3 // 4)

    def tensor(self, like: Tensor) -> Tensor:
        """A tensor of the device, of that shape and type."""
        meta = torch.empty(like.shape, dtype=like.dtype, device="meta")
        return FakeTensor(self.mode, meta, CUDA)

    def graphs(self, spec: BackboneSpec, names: Iterable[str]) -> dict[str, TorchGraph]:
        """Graphs of the real networks, without weights."""
        owners = {name: graph_modules(spec)[name].network for name in names}
        with torch.device("meta"):
            networks = {owner: network_builders(spec)[owner]() for owner in dict.fromkeys(owners.values())}
            modules = {name: build_graph_module(name, spec, networks[owner]) for name, owner in owners.items()}
        moved: dict[int, Tensor] = {}
        for module in modules.values():
            self._move(module, moved)
        return {name: _FakeGraph(name, module, self.mode) for name, module in modules.items()}

    def _move(self, network: nn.Module, moved: dict[int, Tensor]) -> None:
        for module in network.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and not isinstance(tensor, FakeTensor):
                        tensors[name] = moved.setdefault(id(tensor), self.tensor(tensor))  # type: ignore[assignment]

    @contextmanager
    def work(self) -> Iterator[None]:
        """Inside: no look at a value of the device; transfers are counted."""
        with _Bindings(self.mode):
            yield

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside: no transfer, no operation that takes or makes a tensor of the host, and no look at a value."""
        before = len(self.transfers)
        with self.mode, _DeviceOnly(), _Bindings(self.mode):
            yield
        assert self.transfers[before:] == [], "transfers inside a step"


class _FakeGraph(TorchGraph):
    """A graph whose module may ask for new tensors of the device."""

    def __init__(self, name: str, module: nn.Module, mode: FakeTensorMode) -> None:
        super().__init__(name, module)
        self.mode = mode

    device = CUDA  # type: ignore[assignment]  # also of modules without weights

    def __call__(self, *inputs: Tensor) -> Any:
        for tensor in inputs:
            assert tensor.device == CUDA, f"graph {self.name}: an input lies on {tensor.device}"
            assert tensor.dtype in (torch.float32, torch.int64), f"graph {self.name}: an input is {tensor.dtype}"
        with self.mode, _Bindings(self.mode):
            return super().__call__(*inputs)


class _Bindings(TorchFunctionMode):
    """Calls whose Python bindings ask for CUDA themselves, which a CPU build of torch does not have, as operations."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.__getitem__:
            return _indexed(*args)
        if function is Tensor.contiguous:
            return torch.ops.aten.contiguous.default(*args, **kwargs)
        if kwargs.get("device") == CUDA or any(isinstance(value, FakeTensor) for value in tree_leaves((args, kwargs))):
            with self.mode:  # which makes new tensors there
                return function(*args, **kwargs)
        return function(*args, **kwargs)


def _indexed(tensor: Tensor, index: Any) -> Tensor:
    """Numbers, slices, None and ... as views; anything else as a gather, which looks at booleans."""
    entries = index if isinstance(index, tuple) else (index,)
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    result, axis = tensor, 0
    for entry in entries:
        if entry is None:
            result, axis = result.unsqueeze(axis), axis + 1
        elif entry is Ellipsis:
            axis += tensor.ndim - used
        elif isinstance(entry, int):
            result = torch.ops.aten.select.int(result, axis, entry)
        elif isinstance(entry, slice):
            first, last, step = entry.indices(result.shape[axis])
            result, axis = torch.ops.aten.slice.Tensor(result, axis, first, last, step), axis + 1
        else:
            assert len(entries) == 1, index
            return torch.ops.aten.index.Tensor(result, [torch.as_tensor(entry)])
    return result


class _DeviceOnly(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.device.type != "cuda":
                raise HostTensorError(f"{function}: {value.device} {list(value.shape)}")
        return result
