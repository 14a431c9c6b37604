"""Messages of the KServe protocol, split from the bytes of their tensors, which are passed on unread.

`ModelInferRequest` and `ModelInferResponse` keep the bytes of all tensors in one repeated field. A message is walked
field by field; protobuf parses all but that field (the head), and the tensors stay slices of what was received.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tritonclient.grpc import service_pb2 as pb

Payload = list[memoryview]  # bytes of each tensor, in the order of the head's inputs or outputs

_RAW_INPUTS, _RAW_OUTPUTS = 7, 6  # field numbers of raw_input_contents and raw_output_contents
_ERROR_MESSAGE, _INFER_RESPONSE = 1, 2  # of ModelStreamInferResponse
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
FINAL_RESPONSE = "triton_final_response"


@dataclass
class Request:
    """A `ModelInferRequest`: everything but the tensors' bytes, and those."""

    head: Any  # pb.ModelInferRequest
    payload: Payload

    @classmethod
    def parse(cls, data: bytes) -> "Request":
        """Read a message; ValueError if it is none."""
        head, payload = _split(memoryview(data), _RAW_INPUTS)
        return cls(_parse(pb.ModelInferRequest, head), payload)

    def to_bytes(self) -> bytes:
        """The message again."""
        return self.head.SerializeToString() + b"".join(_fields_of(_RAW_INPUTS, self.payload))


@dataclass
class Response:
    """A `ModelStreamInferResponse`: an error, or a response with the bytes of its tensors apart."""

    head: Any = field(default_factory=pb.ModelInferResponse)
    payload: Payload = field(default_factory=list)
    error: str = ""
    _read: dict[str, dict[str, Any] | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def parse(cls, data: bytes) -> "Response":
        """Read a message; ValueError if it is none."""
        view, error, inner = memoryview(data), "", memoryview(b"")
        for number, kind, start, end, _ in _walk(view):
            if number == _ERROR_MESSAGE and kind == _LEN:
                error = str(view[start:end], errors="replace")
            elif number == _INFER_RESPONSE and kind == _LEN:
                inner = view[start:end]
        head, payload = _split(inner, _RAW_OUTPUTS)
        response = cls(_parse(pb.ModelInferResponse, head), payload, error)
        if len(payload) != len(response.head.outputs):
            raise ValueError(f"{len(response.head.outputs)} outputs with the bytes of {len(payload)}")
        return response

    def to_bytes(self) -> bytes:
        """The message again."""
        parts = [self.head.SerializeToString(), *_fields_of(_RAW_OUTPUTS, self.payload)]
        opening = b"" if not self.error else pb.ModelStreamInferResponse(error_message=self.error).SerializeToString()
        return b"".join([opening, _tag(_INFER_RESPONSE), _varint(sum(map(len, parts))), *parts])

    @cached_property
    def names(self) -> list[str]:
        """Of the outputs, which do not change."""
        return [output.name for output in self.head.outputs]

    @property
    def is_final(self) -> bool:
        """Whether Triton calls it the last of its request."""
        return FINAL_RESPONSE in self.head.parameters and self.head.parameters[FINAL_RESPONSE].bool_param

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Content of a BYTES [1] output, parsed once; None if it is not there or no JSON object."""
        if name not in self._read:
            self._read[name] = _json_object(self.strings(name))
        return self._read[name]

    def strings(self, name: str) -> list[bytes]:
        """Elements of a BYTES output; none if it is not there."""
        found: list[bytes] = []
        content = self.payload[self.names.index(name)] if name in self.names else memoryview(b"")
        while content:
            end = 4 + int.from_bytes(content[:4], "little")
            found.append(bytes(content[4:end]))
            content = content[end:]
        return found

    def read_int(self, name: str) -> int:
        """Content of an INT32 [1] output, 0 if it is not there."""
        return int.from_bytes(self.payload[self.names.index(name)], "little") if name in self.names else 0

    def without(self, names: set[str]) -> "Response":
        """A copy that lacks these outputs."""
        kept = [index for index, name in enumerate(self.names) if name not in names]
        head = pb.ModelInferResponse()
        head.CopyFrom(self.head)
        del head.outputs[:]
        head.outputs.extend(self.head.outputs[index] for index in kept)
        return Response(head, [self.payload[index] for index in kept], self.error)


def _json_object(elements: list[bytes]) -> dict[str, Any] | None:
    try:
        (text,) = elements
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _parse(message: Any, data: bytes) -> Any:
    try:
        return message.FromString(data)
    except Exception as error:  # google.protobuf.message.DecodeError, which has no other base class
        raise ValueError(f"not a {message.DESCRIPTOR.name}: {error}") from None


def _split(data: memoryview, raw_field: int) -> tuple[bytes, Payload]:
    """A message without the field of its tensors' bytes, and those."""
    head, payload = [], []
    for number, kind, start, end, tag_start in _walk(data):
        if number == raw_field and kind == _LEN:
            payload.append(data[start:end])
        else:
            head.append(data[tag_start:end])
    return b"".join(head), payload


def _walk(data: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Fields of a message: number, wire type, start and end of the value, start of the tag."""
    position = 0
    while position < len(data):
        tag_start = position
        tag, position = _read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        start = position
        if kind == _LEN:
            length, start = _read_varint(data, position)
            position = start + length
        elif kind == _VARINT:
            _, position = _read_varint(data, position)
        elif kind in (_I64, _I32):
            position += 8 if kind == _I64 else 4
        else:
            raise ValueError(f"wire type {kind} in a message")
        if position > len(data) or number == 0:
            raise ValueError("a message that is cut short")
        yield number, kind, start, position, tag_start


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("a message that is cut short")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _LEN)


def _fields_of(number: int, payload: Payload) -> Iterator[bytes | memoryview]:
    for content in payload:
        yield _tag(number) + _varint(len(content))
        yield content
