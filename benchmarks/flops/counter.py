"""How much a call computes, counted from the shapes of its operations, without computing anything or holding weights.

It counts matrix products, convolutions and attention, with two FLOPs per multiply-add, and the bytes that these read
and write. Elementwise operations are left out, since compilers fuse them into the others.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

# one H200 in bf16, as it is sustained
_FLOPS_PER_S = 790e12
_BYTES_PER_S = 4.3e12


@dataclass(frozen=True)
class Work:
    """Work of some calls, added up."""

    flops: int = 0
    bytes: int = 0
    products: int = 0  # number of operations counted
    roofline_s: float = (
        0.0  # the longer one of arithmetic and memory traffic on an H200, for one operation after another
    )

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.products + other.products,
            self.roofline_s + other.roofline_s,
        )

    def times(self, count: int) -> "Work":
        """The same work, several times."""
        return Work(self.flops * count, self.bytes * count, self.products * count, self.roofline_s * count)


class Counted(NamedTuple):
    """What one call does, and which parameters it reads."""

    work: Work
    parameters: frozenset[nn.Parameter]

    @property
    def parameter_count(self) -> int:
        """Numbers in those parameters."""
        return sum(parameter.numel() for parameter in self.parameters)


class WorkCounter(TorchDispatchMode):
    """Counts what runs inside its block. It switches gradients off: then composite operations reach it whole.

    Attention is one operation that reads queries, keys and values and writes its result, as fused kernels do, on every
    device (torch splits it up on the meta device). A parameter is noted where it is an operation's direct argument.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self.parameters: set[nn.Parameter] = set()
        self._blocks: list[torch.inference_mode] = []  # it is entered again for the parts of a composite operation

    def __enter__(self) -> "WorkCounter":
        self._blocks.append(torch.inference_mode())
        self._blocks[-1].__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._blocks.pop().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation of torch, and count it."""
        kwargs = kwargs or {}
        given = list(_tensors([*args, *kwargs.values()]))
        self.parameters.update(tensor for tensor in given if isinstance(tensor, nn.Parameter))
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            result = func(*args, **kwargs)  # not counted again: this mode is off in here
            shapes = [torch.Size((tensor.shape[:-2].numel(), 1, *tensor.shape[-2:])) for tensor in given[:3]]
            self._add(sdpa_flop_count(*shapes), [*given, result])
            return result
        if func._overloadpacket in flop_registry:
            result = func(*args, **kwargs)
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            self._add(flops, [*given, *_tensors([result])])
            return result
        with self:
            parts = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if parts is NotImplemented else parts

    def _add(self, flops: int, touched: Sequence[Tensor]) -> None:
        size = sum(_stored_bytes(tensor) for tensor in touched)
        self.work += Work(flops, size, 1, max(flops / _FLOPS_PER_S, size / _BYTES_PER_S))


def _stored_bytes(tensor: Tensor) -> int:
    """Of a tensor, what is repeated by broadcasting once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size()


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def count(call: Callable[..., object], *inputs: object) -> Counted:
    """Work of one call."""
    with WorkCounter() as counter:
        call(*inputs)
    return Counted(counter.work, frozenset(counter.parameters))
