"""What the edge lets through to Triton, and in which form."""

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from diffsplat.serving.edge.admission import MAX_ID_CHARACTERS, RefusedError, admit
from tests.serving.edge.scripted import admitted, request


def add(message: pb.ModelInferRequest, name: str, datatype: str, shape: list[int], raw: bytes) -> None:
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    message.raw_input_contents.append(raw)


def sent(data: bytes) -> dict[str, bytes]:
    message = pb.ModelInferRequest.FromString(data)
    return {tensor.name: raw for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True)}


def test_a_request_gets_another_id_and_a_seed() -> None:
    inference = admitted()
    first, second = inference.message("internal"), inference.message("internal")
    assert first == second, "a request that is sent again is the same"
    message = pb.ModelInferRequest.FromString(first)
    assert message.id == "internal" and inference.client_id == "mine"
    (seed,) = struct.unpack("<q", sent(first)["SEED"])
    assert 0 <= seed < 2**32 and sent(first)["PROMPT"][4:] == b"a red cube"
    seeds = {sent(admitted().message(""))["SEED"] for _ in range(4)}
    assert len(seeds) == 4


def test_a_seed_of_the_client_stays() -> None:
    message = request()
    add(message, "SEED", "INT64", [1], struct.pack("<q", 7))
    assert sent(admitted(message).message("internal"))["SEED"] == struct.pack("<q", 7)


def test_tensors_may_come_as_typed_contents() -> None:
    message = pb.ModelInferRequest(model_name="diffsplat", id="mine")
    message.inputs.add(name="PROMPT", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a red cube")
    message.inputs.add(name="DEADLINE_S", datatype="FP32", shape=[1]).contents.fp32_contents.append(8.0)
    inference = admitted(message)
    again = pb.ModelInferRequest.FromString(inference.message("internal", elapsed_s=3.0))
    assert inference.end_after_s == 8.0 and not again.raw_input_contents
    by_name = {tensor.name: tensor.contents for tensor in again.inputs}
    assert by_name["DEADLINE_S"].fp32_contents == [5.0] and len(by_name["SEED"].int64_contents) == 1


def test_deadlines_shrink_by_the_time_that_has_passed() -> None:
    message = request()
    add(message, "DEADLINE_S", "FP32", [1], struct.pack("<f", 10.0))
    add(message, "START_DEADLINE_S", "FP32", [1], struct.pack("<f", 2.0))
    inference = admitted(message)
    assert inference.end_after_s == 10.0
    assert sent(inference.message("x"))["DEADLINE_S"] == struct.pack("<f", 10.0)
    later = sent(inference.message("x", elapsed_s=4.0))
    assert struct.unpack("<f", later["DEADLINE_S"]) == (6.0,)
    assert 0 < struct.unpack("<f", later["START_DEADLINE_S"])[0] < 0.01, "it has passed: the first stage says so"


def test_a_stop_and_a_probe_are_told_from_requests() -> None:
    stop = pb.ModelInferRequest(model_name="denoise", id="mine")
    add(stop, "STOP", "BOOL", [1], b"\1")
    assert admitted(stop).is_stop and not admitted().is_stop
    probe = admitted(pb.ModelInferRequest(model_name="decode", id="probe"))
    assert not probe.repeatable and not probe.is_stop and admitted().repeatable


def lasting(message: Any, on_disconnect: str, request_id: str = "mine") -> Any:
    message.parameters["diffsplat_on_disconnect"].string_param = on_disconnect
    message.id = request_id
    return message


def test_parameters_of_the_edge_stay_here_and_the_digest_is_the_requests() -> None:
    kept, other = admitted(lasting(request(), "keep")), admitted(lasting(request(PROMPT=b"a blue cone"), "keep"))
    assert kept.on_disconnect == "keep" and not kept.attaches
    assert not pb.ModelInferRequest.FromString(kept.message("internal")).parameters
    assert kept.digest == admitted(lasting(request(), "keep")).digest != other.digest, "a drawn seed is not part of it"
    attaching = pb.ModelInferRequest(model_name="diffsplat", id="mine")
    attaching.parameters["diffsplat_attach"].bool_param = True
    assert admitted(attaching).attaches and admitted(attaching).on_disconnect == "keep"
    assert admitted().on_disconnect is None


def shaped(datatype: str, shape: list[int], raw: bytes) -> Callable[[Any], None]:
    return lambda message: add(message, "FRAME_POSES", datatype, shape, raw)


def typed(*numbers: int) -> Callable[[Any], None]:
    def apply(message: Any) -> None:
        del message.raw_input_contents[:]
        message.inputs[0].contents.int_contents.extend(numbers)

    return apply


def rename(**fields: str) -> Callable[[Any], None]:
    def apply(message: Any) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return apply


def parameter(message: Any) -> None:
    message.parameters["sequence_id"].int64_param = 1


def region(message: Any) -> None:
    message.inputs[0].parameters["shared_memory_region"].string_param = "mine"


def classification(message: Any) -> None:
    message.outputs.add(name="GAUSSIANS").parameters["classification"].int64_param = 3


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shaped("FP32", [2**62, 4], b""), r"FRAME_POSES.*no tensor can have it"),
        (shaped("FP32", [-1, 4], b""), "no tensor can have it"),
        (shaped("FP32", [2, 4], b"\0" * 16), r"FRAME_POSES.*in 16 bytes: they do not fit"),
        (shaped("FP64", [1], b"\0" * 8), "do not fit"),
        (shaped("BYTES", [1], b"\xff\xff\xff\xff"), "do not fit"),
        (shaped("BYTES", [2], b"\0\0\0\0"), "do not fit"),
        (shaped("BYTES", [1], b"\0"), "do not fit"),
        (shaped("INT32", [1, 4], b"\0" * 16), "FRAME_POSES has type 'INT32': must be FP32"),
        (shaped("FP32", [4], b"\0" * 16), r"FRAME_POSES has shape \[4\]: must be \[-1, 4\]"),
        (shaped("FP32", [1, 5], b"\0" * 20), r"FRAME_POSES has shape \[1, 5\]: must be \[-1, 4\]"),
        (lambda message: add(message, "COLOUR", "BYTES", [1], b"\0\0\0\0"), "'COLOUR' is no input of diffsplat"),
        (lambda message: message.outputs.add(name="COLOUR"), "'COLOUR' is no output of diffsplat"),
        (rename(model_version="2"), "model version = '2': must be left out"),
        (typed(1), "PROMPT.*with contents {'int_contents': 1}: they do not fit"),
        (lambda message: message.raw_input_contents.append(b""), "1 inputs with the bytes of 2"),
        (lambda message: add(message, "PROMPT", "BYTES", [1], b"\0\0\0\0"), "two inputs of one name"),
        (parameter, "request parameter 'sequence_id': is not taken"),
        (lambda message: lasting(message, "perhaps"), "diffsplat_on_disconnect = 'perhaps': must be cancel or keep"),
        (lambda message: lasting(message, "keep", request_id=""), "need a request id"),
        (region, "parameter 'shared_memory_region' of a tensor is not taken"),
        (classification, "parameter 'classification' of a tensor is not taken"),
        (rename(model_name="decode"), "requests go to diffsplat or diffsplat_reconstruct, no other model"),
        (rename(model_name="secret"), "model = 'secret'"),
        (rename(id="x" * (MAX_ID_CHARACTERS + 1)), "at most 128 printable ASCII"),
        (rename(id="line\nbreak"), "printable ASCII"),
    ],
)
def test_what_triton_must_not_see_is_refused(damage: Callable[[Any], None], says: str) -> None:
    message = request()
    damage(message)
    with pytest.raises(RefusedError, match=says) as refused:
        admit(message.SerializeToString())
    assert refused.value.code == "INVALID_ARG"


def test_a_stop_needs_an_id() -> None:
    stop = pb.ModelInferRequest(model_name="denoise")
    add(stop, "STOP", "BOOL", [1], b"\1")
    with pytest.raises(RefusedError, match="STOP needs the id"):
        admit(stop.SerializeToString())


def test_damaged_messages_are_taken_or_refused_and_nothing_else() -> None:
    """What gets through is a message that Triton can read, with tensors whose bytes fill them."""
    draw = random.Random(0)
    message = lasting(request(PROMPT=b"a red cube", NEGATIVE_PROMPT=b"blue"), "keep")
    add(message, "FRAME_POSES", "FP32", [2, 4], b"\0" * 32)
    add(message, "DEADLINE_S", "FP32", [1], struct.pack("<f", 5.0))
    whole = message.SerializeToString()
    taken = 0
    for _ in range(4000):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            kind, at = draw.randrange(3), draw.randrange(len(data))
            if kind == 0:
                data[at] = draw.randrange(256)
            elif kind == 1:
                del data[at : at + draw.randint(1, 8)]
            else:
                data[at:at] = draw.randbytes(draw.randint(1, 8))
        try:
            inference = admit(bytes(data))
        except RefusedError as error:
            assert error.code == "INVALID_ARG"
            continue
        taken += 1
        passed_on = pb.ModelInferRequest.FromString(inference.message("internal", elapsed_s=1.0))
        assert passed_on.id == "internal" and not passed_on.parameters["sequence_id"].int64_param
        assert len(passed_on.inputs) == len(passed_on.raw_input_contents) or not passed_on.raw_input_contents
    assert 50 < taken < 3900
