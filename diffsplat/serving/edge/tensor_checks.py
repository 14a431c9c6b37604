"""The tensors of a request: their bytes fill their shapes, and names, types and shapes are those of the contract."""

import math
from typing import Any

from diffsplat_client.contract import MODELS
from diffsplat_client.request_checks import short

from diffsplat.serving.edge.refusal import RefusedError
from diffsplat.serving.edge.wire import Payload

MAX_ELEMENTS = 2**31 - 1  # of a tensor; Triton 2.51 multiplies dims without a look at overflows
MAX_STRINGS = 4096  # elements of a BYTES tensor
ENSEMBLE_VERSIONS = ("", "1")  # an ensemble is replaced in place: `repository/copy.py`
_SIZES = {"BOOL": 1, "UINT8": 1, "INT32": 4, "INT64": 8, "FP32": 4}
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}


def check_payload(head: Any, payload: Payload) -> None:
    """Shapes must be possible and filled: Triton 2.51 ends or hangs on some that are not."""
    if payload and len(payload) != len(head.inputs):
        raise RefusedError("INVALID_ARG", f"{len(head.inputs)} inputs with the bytes of {len(payload)}")
    names = [tensor.name for tensor in head.inputs]
    if len(set(names)) != len(names):
        raise RefusedError("INVALID_ARG", "two inputs of one name")
    for index, tensor in enumerate(head.inputs):
        name, shape = short(tensor.name), list(tensor.shape)
        if any(size < 0 for size in shape) or (elements := math.prod(shape)) > MAX_ELEMENTS:
            raise RefusedError("INVALID_ARG", f"{name} has shape {short(str(shape))}: no tensor can have it")
        if not payload:
            _check_typed_contents(tensor, elements)
            continue
        content = payload[index]
        if tensor.datatype == "BYTES":
            filled = _count_strings(content) == elements
        else:
            filled = len(content) == elements * _SIZES.get(tensor.datatype, -1)
        if not filled:
            kind = short(f"{tensor.datatype} {shape}")
            raise RefusedError("INVALID_ARG", f"{name} came as {kind} in {len(content)} bytes: they do not fit")


def _check_typed_contents(tensor: Any, elements: int) -> None:
    """The other form of a tensor: a list of numbers or strings of its type, and none of another."""
    wanted = _CONTENTS.get(tensor.datatype, "")
    counts = {field.name: len(values) for field, values in tensor.contents.ListFields()}
    if counts != ({wanted: elements} if elements else {}):
        kind = short(f"{tensor.datatype} {list(tensor.shape)}")
        raise RefusedError(
            "INVALID_ARG", f"{short(tensor.name)} came as {kind} with contents {counts}: they do not fit"
        )


def _count_strings(content: memoryview) -> int:
    """Elements of a BYTES tensor, each with its length in front; -1 if the bytes do not divide like that."""
    position = count = 0
    while position < len(content) and count <= MAX_STRINGS:
        if position + 4 > len(content):
            return -1
        position += 4 + int.from_bytes(content[position : position + 4], "little")
        count += 1
    return count if position == len(content) else -1


def check_contract(head: Any) -> None:
    """Of a request to an ensemble: Triton's own errors about these name no type that a client could read."""
    model = MODELS[head.model_name]
    specs = {spec.name: spec for spec in model.inputs}
    if head.model_version not in ENSEMBLE_VERSIONS:
        raise RefusedError("INVALID_ARG", f"model version = {short(head.model_version)}: must be left out")
    for tensor in head.inputs:
        spec, shape = specs.get(tensor.name), list(tensor.shape)
        if spec is None:
            raise RefusedError("INVALID_ARG", f"{short(tensor.name)} is no input of {head.model_name}")
        if tensor.datatype != spec.datatype:
            raise RefusedError("INVALID_ARG", f"{spec.name} has type {short(tensor.datatype)}: must be {spec.datatype}")
        if len(shape) != len(spec.dims) or any(
            dim not in (-1, size) for dim, size in zip(spec.dims, shape, strict=True)
        ):
            raise RefusedError("INVALID_ARG", f"{spec.name} has shape {shape}: must be {list(spec.dims)}")
    outputs = {spec.name for spec in model.outputs}
    for output in head.outputs:
        if output.name not in outputs:
            raise RefusedError("INVALID_ARG", f"{short(output.name)} is no output of {head.model_name}")
