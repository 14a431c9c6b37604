"""The options of a request as the small tensors of the wire, and back."""

from typing import Any

import numpy as np

from diffsplat_client.contract import TensorSpec
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.request_checks import MAX_PROMPT_CHARACTERS

MAX_TEXT_BYTES = 4 * MAX_PROMPT_CHARACTERS  # no character of UTF-8 is longer
MAX_TEXTS = 64  # of a list
_NUMPY: dict[str, Any] = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}


def encode_options(request: object, specs: tuple[TensorSpec, ...]) -> dict[str, np.ndarray]:
    """One tensor per spec, from the field of the same name in lower case; fields that are None are left out."""
    tensors = {}
    for spec in specs:
        value = getattr(request, spec.name.lower())
        if value is None:
            continue
        if spec.datatype == "BYTES":
            texts = value if spec.dims == (-1,) else [value]
            data = [text if isinstance(text, bytes) else text.encode() for text in texts]
            tensors[spec.name] = np.array(data, dtype=np.object_)
        else:
            array = np.asarray(value, dtype=_NUMPY[spec.datatype])
            tensors[spec.name] = array.reshape(1) if spec.dims == (1,) else array
    return tensors


def decode_options(
    tensors: dict[str, np.ndarray], specs: tuple[TensorSpec, ...], files: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Field -> value of the tensors that were sent.

    Args:
        tensors: by name; names without a spec are ignored.
        specs: the tensors to read.
        files: fields whose BYTES are left as they are; those of the others are text.

    Raises:
        InvalidRequestError: a tensor with another shape than its spec, or text that is not UTF-8.
    """
    values: dict[str, Any] = {}
    for spec in specs:
        tensor = tensors.get(spec.name)
        if tensor is None:
            continue
        name = spec.name.lower()
        if spec.datatype == "BYTES" and spec.dims == (-1,):
            values[name] = _decode_texts(name, tensor)
        elif spec.dims != (1,):
            values[name] = tensor
        elif tensor.size != 1:
            raise InvalidRequestError(f"{name} has shape {list(tensor.shape)}: must be [1]")
        elif name in files:
            values[name] = tensor.reshape(-1)[0]
        elif spec.datatype == "BYTES":
            values[name] = _decode_text(name, tensor.reshape(-1)[0])
        else:
            values[name] = _decode_number(tensor.reshape(-1)[0])
    return values


def _decode_texts(name: str, tensor: np.ndarray) -> tuple[str, ...]:
    if tensor.size > MAX_TEXTS:
        raise InvalidRequestError(f"{name} has {tensor.size} elements: at most {MAX_TEXTS} are allowed")
    return tuple(_decode_text(name, raw) for raw in tensor.reshape(-1))


def _decode_text(name: str, raw: Any) -> str:
    if len(raw) > MAX_TEXT_BYTES:  # counted before it is decoded, and so copied
        raise InvalidRequestError(f"{name} has {len(raw)} bytes: at most {MAX_TEXT_BYTES} are allowed")
    try:
        return raw.decode() if isinstance(raw, bytes) else str(raw)
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{name} is not valid UTF-8 text") from None


def _decode_number(value: Any) -> Any:
    """A scalar tensor's value; for FP32 the shortest decimal that rounds to it.

    So 0.9 is 0.9 again, not 0.8999999762: int(20 * 0.9) steps are 18.
    """
    return float(str(value)) if isinstance(value, np.float32) else value.item()
