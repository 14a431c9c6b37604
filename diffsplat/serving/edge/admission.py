"""What a client may ask for: checks a request before Triton sees it, and writes the one that Triton gets."""

import hashlib
import math
import secrets
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffsplat_client.contract import (
    ATTACH,
    CANCEL,
    DEADLINE,
    DRAWN_SEED_LIMIT,
    ENSEMBLE,
    ENSEMBLES,
    KEEP,
    MODELS,
    ON_DISCONNECT,
    REQUEST_TENSORS,
    STOP,
    STOP_MODEL,
)
from diffsplat_client.request_checks import short
from tritonclient.grpc import service_pb2 as pb

from diffsplat.serving.edge.refusal import RefusedError
from diffsplat.serving.edge.tensor_checks import check_contract, check_payload
from diffsplat.serving.edge.wire import Request

EMPTY_FINAL = "triton_enable_empty_final_response"
MAX_ID_CHARACTERS = 128

_PARAMETERS = (EMPTY_FINAL, ON_DISCONNECT, ATTACH)
_SEED = "SEED"
_DEADLINES = (DEADLINE.name, "START_DEADLINE_S")
_GENERATION = {spec.name for spec in REQUEST_TENSORS}


class Deadline(NamedTuple):
    """A tensor with a number of seconds from the arrival on."""

    position: int  # of the input
    seconds: float


@dataclass(frozen=True)
class Inference:
    """A checked request.

    Attributes:
        client_id: the id that the client gave it, which its answers carry; empty if it has none.
        is_stop: it asks to stop the client's request of the same id, and is nothing for Triton.
        repeatable: sent again it gives the same answer: it has a seed.
        deadlines: in seconds from the arrival on.
        on_disconnect: what happens to it when its client leaves, CANCEL or KEEP; None: it is cancelled, and its id
            means nothing beyond its stream.
        attaches: it is not to be computed, only found.
        digest: of what the client sent but for the id, if the id lasts.
        places: how many requests it counts for: one for each of its seeds.
        trace_headers: those of the call by which the caller says which trace it belongs to.
    """

    client_id: str
    request: Request
    is_stop: bool
    repeatable: bool
    deadlines: tuple[Deadline, ...]
    on_disconnect: str | None = None
    attaches: bool = False
    digest: bytes = b""
    places: int = 1
    trace_headers: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model that it asks."""
        return str(self.request.head.model_name)

    @property
    def end_after_s(self) -> float:
        """Seconds from the arrival on after which nobody wants the answer any more."""
        inputs = self.request.head.inputs
        return min((d.seconds for d in self.deadlines if inputs[d.position].name == DEADLINE.name), default=math.inf)

    def text(self, name: str) -> str:
        """A BYTES [1] input as text, cut to 2,000 characters; empty if it was not sent."""
        for position, tensor in enumerate(self.request.head.inputs):
            if tensor.name == name:
                payload = self.request.payload
                raw = bytes(payload[position][4:]) if payload else b"".join(tensor.contents.bytes_contents)
                return raw.decode(errors="replace")[:2000]
        return ""

    def message(self, request_id: str, elapsed_s: float = 0.0) -> bytes:
        """For Triton, under another id; its deadlines shrink by the time that has passed since the arrival."""
        head = pb.ModelInferRequest()
        head.CopyFrom(self.request.head)
        head.id = request_id
        for name in (ON_DISCONNECT, ATTACH):
            head.parameters.pop(name, None)
        payload = list(self.request.payload)
        for position, seconds in self.deadlines if elapsed_s else ():
            left = max(seconds - elapsed_s, 1e-3)
            if payload:
                payload[position] = memoryview(struct.pack("<f", left))
            else:
                head.inputs[position].contents.fp32_contents[:] = [left]
        return Request(head, payload).to_bytes()


def admit(data: bytes) -> Inference:
    """Check a `ModelInferRequest`. RefusedError says what is wrong with it."""
    try:
        request = Request.parse(data)
    except ValueError as error:
        raise RefusedError("INVALID_ARG", f"the request is {error}") from None
    try:
        return _check(request)
    except RefusedError as error:
        error.head = request.head
        raise


def wants_empty_final(head: Any) -> bool:
    """Whether the client wants to see the end of its request, as Triton marks it for decoupled models."""
    return EMPTY_FINAL in head.parameters and head.parameters[EMPTY_FINAL].bool_param


def _check(request: Request) -> Inference:
    head = request.head
    _check_id(head.id)
    _check_parameters(head)
    check_payload(head, request.payload)
    if head.model_name in ENSEMBLES:
        check_contract(head)
    names = [tensor.name for tensor in head.inputs]
    is_stop = head.model_name == STOP_MODEL and names == [STOP.name]
    is_probe = head.model_name in MODELS and not names
    if not (head.model_name in ENSEMBLES or is_stop or is_probe):
        raise RefusedError(
            "INVALID_ARG", f"model = {short(head.model_name)}: requests go to {' or '.join(ENSEMBLES)}, no other model"
        )
    if is_stop and not head.id:
        raise RefusedError("INVALID_ARG", "STOP needs the id of the request to stop as its own request id")
    attaches = ATTACH in head.parameters and head.parameters[ATTACH].bool_param
    on_disconnect = head.parameters[ON_DISCONNECT].string_param if ON_DISCONNECT in head.parameters else None
    if attaches and on_disconnect is None:
        on_disconnect = KEEP
    if on_disconnect is not None and not head.id:
        raise RefusedError("INVALID_ARG", f"{ON_DISCONNECT} and {ATTACH} need a request id")
    if on_disconnect not in (None, CANCEL, KEEP):
        raise RefusedError("INVALID_ARG", f"{ON_DISCONNECT} = {short(on_disconnect)}: must be {CANCEL} or {KEEP}")
    digest = b"" if on_disconnect is None else _digest(request)
    if head.model_name == ENSEMBLE and _GENERATION.intersection(names) and _SEED not in names:
        _add_seed(request)
    repeatable = head.model_name in ENSEMBLES and bool(names)
    deadlines = tuple(_deadlines(request))
    places = max(_number(request, "NUM_SEEDS", "INT32", "<i") or 1, 1)  # anything odd is refused by the first stage
    return Inference(head.id, request, is_stop, repeatable, deadlines, on_disconnect, attaches, digest, places)


def _digest(request: Request) -> bytes:
    hashed = hashlib.sha256(request.head.SerializeToString(deterministic=True))
    for content in request.payload:
        hashed.update(len(content).to_bytes(8, "little"))
        hashed.update(content)
    return hashed.digest()


def _check_id(request_id: str) -> None:
    if len(request_id) > MAX_ID_CHARACTERS or not (request_id.isascii() and request_id.isprintable()):
        raise RefusedError(
            "INVALID_ARG",
            f"request id = {short(request_id)}, {len(request_id)} characters: must be at most {MAX_ID_CHARACTERS} "
            "printable ASCII characters",
        )


def _check_parameters(head: Any) -> None:
    """Unknown ones reach every stage, and some end Triton 2.51; those of tensors open shared memory."""
    for name in head.parameters:
        if name not in _PARAMETERS:
            taken = ", ".join(_PARAMETERS)
            raise RefusedError("INVALID_ARG", f"request parameter {short(name)}: is not taken; there are {taken}")
    for tensor in (*head.inputs, *head.outputs):
        for name in tensor.parameters:
            raise RefusedError("INVALID_ARG", f"{short(tensor.name)}: parameter {short(name)} of a tensor is not taken")


def _add_seed(request: Request) -> None:
    """Sent again after a restart, the request must give the same object."""
    seed = secrets.randbelow(DRAWN_SEED_LIMIT)
    tensor = request.head.inputs.add(name=_SEED, datatype="INT64", shape=[1])
    if request.payload:
        request.payload.append(memoryview(struct.pack("<q", seed)))
    else:
        tensor.contents.int64_contents.append(seed)


def _deadlines(request: Request) -> list[Deadline]:
    found = ((name, _number(request, name, "FP32", "<f")) for name in _DEADLINES)
    names = [tensor.name for tensor in request.head.inputs]
    # anything else is refused by the first stage
    return [Deadline(names.index(name), seconds) for name, seconds in found if seconds is not None and seconds > 0]


def _number(request: Request, name: str, datatype: str, layout: str) -> Any:
    """The value of an input of one element; None for anything else."""
    for index, tensor in enumerate(request.head.inputs):
        if tensor.name == name and tensor.datatype == datatype and math.prod(tensor.shape) == 1:
            contents = tensor.contents.fp32_contents if datatype == "FP32" else tensor.contents.int_contents
            values = struct.unpack(layout, request.payload[index]) if request.payload else contents
            return values[0] if len(values) == 1 else None
    return None
