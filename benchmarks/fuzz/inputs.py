"""What is sent: requests made from the contract with good, extreme and wrong values, and bytes that are no requests.

Requests that could be accepted ask for little: see `CHEAP`.
"""

import json
import math
import struct
from functools import cache
from typing import Any

from diffsplat_client.contract import (
    ATTACH,
    ENSEMBLE,
    ENSEMBLES,
    MODELS,
    ON_DISCONNECT,
    RECONSTRUCTION,
    REQUEST_TENSORS,
    TensorSpec,
)
from diffsplat_client.request import CHOICES, OPTIONS, RANGES
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

CHEAP = {"steps": 3, "frame_size": 64}  # largest values of requests that may be accepted
MAX_LENGTH = 6  # of an axis of free length
_FORMATS = {"INT32": "<i", "INT64": "<q", "FP32": "<f", "BOOL": "<?", "UINT8": "<B"}
_INTEGERS = {"INT32": (-(2**31), 2**31 - 1), "INT64": (-(2**63), 2**63 - 1), "UINT8": (0, 255)}
_some_datatype = st.sampled_from((*_FORMATS, "BYTES", "FP16", "FP64", "UINT64", "", "bytes"))
_FILES = (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBP", b"GIF89a")

_PROMPTS = st.sampled_from(("a red cube", "a blue cone"))
_ODD_TEXTS = ("", " ", "\0", "a" * 2001, "é" * 300, "\u202e", "<|endoftext|>", "nan")
texts = st.one_of(_PROMPTS, st.sampled_from(_ODD_TEXTS), st.text(max_size=40))


def _mostly(common: st.SearchStrategy[Any], rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The rare one in a tenth of the cases; `one_of` would give both alike."""
    return st.integers(0, 9).flatmap(lambda number: rare if number == 7 else common)


def _odd_floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.one_of(st.sampled_from((low - 0.5, high + 0.5, -0.0)), st.floats(width=32))


@cache  # making a strategy takes longer than drawing from it
def _number(spec: TensorSpec) -> st.SearchStrategy[float]:
    """A value for an option: mostly within its limits or just outside, now and then anything."""
    name, integers = spec.name.lower(), _INTEGERS.get(spec.datatype)
    if spec.datatype == "BOOL":
        return st.booleans()
    low, high = RANGES.get(name, (-2.0, 2.0))
    if name in CHEAP:
        return _mostly(st.integers(int(low), CHEAP[name]), st.sampled_from((int(low) - 1, int(high) + 1, -1)))
    if integers is not None:
        least, most = max(int(low), integers[0]), min(int(high), integers[1])
        odd = st.sampled_from((max(least - 1, integers[0]), min(most + 1, integers[1])))
        return _mostly(st.integers(least, most), st.one_of(odd, st.integers(*integers)))
    return _mostly(st.one_of(st.sampled_from([low, high, 0.0]), st.floats(low, high)), _odd_floats(low, high))


@cache
def _text(spec: TensorSpec) -> st.SearchStrategy[bytes]:
    """Content of a BYTES tensor."""
    name = spec.name.lower()
    if OPTIONS.get(name) is not None and OPTIONS[name].metadata.get("file"):
        return st.builds(lambda head, tail: head + tail, st.sampled_from(_FILES), st.binary(max_size=64))
    choices = CHOICES.get(name)
    good = _mostly(_PROMPTS if choices is None else st.sampled_from(choices), texts)
    return _mostly(good.map(lambda text: text.encode("utf-8", "replace")), st.binary(max_size=20))


_LENGTHS = st.integers(0, MAX_LENGTH)
_FAULTS = st.sampled_from((*[""] * 80, "type", "shape", "bytes"))
_SHAPES = st.lists(st.one_of(st.integers(-2, 8), st.sampled_from((2**31, 2**62, -(2**63)))), max_size=5)
_SOME_BYTES = st.binary(max_size=32)


@cache
def _values(spec: TensorSpec) -> st.SearchStrategy[list[float]]:
    """A few values, to be repeated: the views of a reconstruction have thousands."""
    return st.lists(_number(spec), min_size=1, max_size=4)


@st.composite
def _tensor(draw: Any, spec: TensorSpec) -> tuple[str, str, list[int], bytes]:
    """Name, datatype, shape and bytes; wrong in one way or another in a fifth of the cases."""
    fault = draw(_FAULTS)
    datatype = draw(_some_datatype) if fault == "type" else spec.datatype
    dims = [draw(_LENGTHS) if size < 0 else size for size in spec.dims]
    count = math.prod(dims)
    if datatype == "BYTES":
        values = [draw(_text(spec)) for _ in range(min(count, MAX_LENGTH))]
        content = b"".join(len(value).to_bytes(4, "little") + value for value in values)
    elif datatype in _FORMATS and spec.datatype == datatype:
        drawn = draw(_values(spec))
        content = b"".join(struct.pack(_FORMATS[datatype], drawn[i % len(drawn)]) for i in range(count))
    else:
        content = draw(_SOME_BYTES)
    if fault == "shape":
        dims = draw(_SHAPES)
    if fault == "bytes":
        content = draw(_SOME_BYTES) if draw(st.booleans()) else content[:-1]
    return spec.name, datatype, dims, content


_tensors = {spec: _tensor(spec) for model in ENSEMBLES for spec in MODELS[model].inputs}
_first = {model: MODELS[model].inputs[0] for model in ENSEMBLES}
_others = {model: st.lists(st.sampled_from(MODELS[model].inputs[1:]), unique=True, max_size=6) for model in ENSEMBLES}
_always = [spec for spec in REQUEST_TENSORS if spec.name.lower() in CHEAP]


@st.composite
def messages(draw: Any) -> bytes:
    """A `ModelInferRequest` for an ensemble, serialized: with some of its tensors, and often one thing wrong."""
    model = draw(_models)
    message = pb.ModelInferRequest(model_name=model, id=draw(_ids))
    chosen = draw(_others[model])
    if draw(_LENGTHS) != 5:  # without it nothing behind the first check is ever reached
        chosen = [_first[model], *chosen]
    if model == ENSEMBLE:
        chosen += [spec for spec in _always if spec not in chosen]
    for name, datatype, dims, content in [draw(_tensors[spec]) for spec in chosen]:
        message.inputs.add(name=name, datatype=datatype, shape=dims)
        message.raw_input_contents.append(content)
    if (spoil := draw(_spoilers)) is not None:
        spoil(draw, message)
    return bytes(message.SerializeToString())


_models = st.sampled_from((ENSEMBLE, ENSEMBLE, ENSEMBLE, RECONSTRUCTION))
_ids = _mostly(st.sampled_from(("", "an-id", "another")), st.one_of(st.text(max_size=12), st.just("x" * 129)))


def _other_model(draw: Any, message: Any) -> None:
    message.model_name = draw(st.one_of(st.sampled_from((*MODELS, "")), st.text(max_size=8)))


def _version(draw: Any, message: Any) -> None:
    message.model_version = draw(st.one_of(st.sampled_from(("1", "2", "-1", "999999999999999999999")), st.text()))


def _parameter(draw: Any, message: Any) -> None:
    name = draw(st.one_of(st.sampled_from((ON_DISCONNECT, ATTACH, "priority", "timeout", "sequence_id")), st.text()))
    parameter = message.parameters[name]
    kind = draw(st.sampled_from(("bool_param", "int64_param", "string_param", "double_param", "none")))
    values = {"bool_param": True, "int64_param": draw(st.integers(-(2**63), 2**63 - 1)), "double_param": 1.5}
    if kind != "none":
        setattr(parameter, kind, values.get(kind, draw(st.sampled_from(("keep", "cancel", "")))))


def _tensor_parameter(draw: Any, message: Any) -> None:
    if message.inputs:
        message.inputs[0].parameters["shared_memory_region"].string_param = draw(st.text(max_size=8))


def _twice(draw: Any, message: Any) -> None:
    if message.inputs:
        message.inputs.append(message.inputs[0])
        message.raw_input_contents.append(message.raw_input_contents[0])


def _lost_bytes(draw: Any, message: Any) -> None:
    if message.raw_input_contents:
        message.raw_input_contents.pop()


def _typed_contents(draw: Any, message: Any) -> None:
    """The other way to send tensors: as numbers instead of bytes, more or fewer than the shape says."""
    del message.raw_input_contents[:]
    for tensor in message.inputs:
        field = {"INT32": "int_contents", "INT64": "int64_contents", "FP32": "fp32_contents", "BOOL": "bool_contents"}
        count = draw(st.integers(0, 2))
        if tensor.datatype == "BYTES":
            tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=8), max_size=2)))
        elif tensor.datatype in field:
            getattr(tensor.contents, field[tensor.datatype]).extend([1] * count)


def _outputs(draw: Any, message: Any) -> None:
    message.outputs.add(name=draw(st.one_of(st.sampled_from(("GAUSSIANS", "STATUS", "")), st.text(max_size=8))))


def _unknown_input(draw: Any, message: Any) -> None:
    message.inputs.add(name=draw(st.text(max_size=8)), datatype=draw(_some_datatype), shape=[1])
    message.raw_input_contents.append(draw(st.binary(max_size=8)))


_SPOILERS = (
    _other_model,
    _version,
    _parameter,
    _tensor_parameter,
    _twice,
    _lost_bytes,
    _typed_contents,
    _outputs,
    _unknown_input,
)
_spoilers = st.sampled_from((*[None] * 40, *_SPOILERS))


_sources = _mostly(messages(), st.binary(max_size=64))
_one_byte, _few_bytes = st.binary(min_size=1, max_size=1), st.binary(max_size=8)


@st.composite
def damaged(draw: Any) -> bytes:
    """A request with bytes changed, cut off or put in; or bytes that never were one."""
    data = bytearray(draw(_sources))
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 9)):
            case 0:
                del data[where:]
            case 1 | 2:
                data[where:where] = draw(_few_bytes)
            case _:
                data[where : where + 1] = draw(_one_byte)
    return bytes(data)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


def _json_field(name: str) -> st.SearchStrategy[Any]:
    """Mostly what the option takes."""
    about, limits, choices = OPTIONS[name].metadata, RANGES.get(name), CHOICES.get(name)
    if name in CHEAP:
        return st.integers(int(RANGES[name][0]) - 1, CHEAP[name])
    if choices:
        return st.sampled_from(choices)
    if limits:
        return st.integers(*map(int, limits)) if about["integer"] else st.floats(*map(float, limits))
    return st.booleans() if isinstance(OPTIONS[name].default, bool) else texts


_JSON_FIELDS = {name: _json_field(name) for name in OPTIONS} | {"unknown": json_values}


@st.composite
def json_bodies(draw: Any) -> bytes:
    """Bodies of the HTTP front: fields of a request with values of every kind, or no JSON at all."""
    if draw(st.integers(0, 4)) == 3:
        return draw(st.one_of(st.binary(max_size=40), json_values.map(lambda value: json.dumps(value).encode())))
    values: dict[str, Any] = {"prompt": draw(texts)}
    names = draw(st.lists(st.sampled_from([*_JSON_FIELDS]), unique=True, max_size=4))
    for name in {*CHEAP, *names}:
        values[name] = draw(json_values if draw(st.integers(0, 9)) == 7 else _JSON_FIELDS[name])
    return json.dumps(values).encode("utf-8", "surrogatepass")


@st.composite
def envelopes(draw: Any) -> str:
    """REQUEST tensors, as a client could send them straight to a later stage."""
    request = draw(st.one_of(json_values, st.dictionaries(st.sampled_from([*OPTIONS]), json_values, max_size=6)))
    whole = {"request": request}
    for name in draw(st.lists(st.sampled_from(("warnings", "timings_ms", "deadlines", "sent_s", "ticket")))):
        whole[name] = draw(json_values)
    return draw(st.one_of(st.just(json.dumps(whole)), texts, json_values.map(json.dumps)))


garbage = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.builds(
        lambda verb, path, rest: b"%s %s HTTP/1.1\r\n%s\r\n\r\n" % (verb, path, rest),
        st.sampled_from((b"GET", b"POST", b"DELETE", b"PUT", b"PRI", b"")),
        st.sampled_from((b"/", b"/v1/splats", b"/v1/splats/%00/events", b"/healthz", b"*", b"/" + b"x" * 300)),
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                (
                    b"Host: x\r\nContent-Length: -1",
                    b"Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
                    b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                    b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{]",
                )
            ),
        ),
    ),
    # the opening of HTTP/2, and frames that are none
    st.binary(max_size=120).map(lambda frames: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames),
    st.builds(
        lambda kind, flags, stream, body: (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
            + len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
        ),
        st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**32 - 1), st.binary(max_size=60),
    ),
)  # fmt: skip
