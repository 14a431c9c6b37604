"""Messages are split and joined again without a change, whatever their tensors hold."""

import pytest
from tritonclient.grpc import service_pb2 as pb

from diffsplat.serving.edge.wire import FINAL_RESPONSE, Request, Response
from tests.serving.edge.scripted import answer, failure, read, request, status


def test_a_request_keeps_every_field() -> None:
    message = request(PROMPT=b"a red cube", IMAGE=bytes(range(256)) * 1000, NEGATIVE_PROMPT=b"")
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    message.outputs.add(name="GAUSSIANS")
    parsed = Request.parse(message.SerializeToString())
    assert [bytes(part) for part in parsed.payload] == list(message.raw_input_contents)
    assert not parsed.head.raw_input_contents and parsed.head.id == "mine"
    assert pb.ModelInferRequest.FromString(parsed.to_bytes()) == message


def test_a_response_gets_another_id_and_keeps_the_rest() -> None:
    message = pb.ModelStreamInferResponse.FromString(
        answer(STATUS=status("finished"), ASSETS=b"\0" * 300_000, EMPTY=b"")
    )
    message.infer_response.parameters[FINAL_RESPONSE].bool_param = True
    response = Response.parse(message.SerializeToString())
    assert response.names == ["STATUS", "ASSETS", "EMPTY"] and response.is_final
    assert response.read_json("STATUS") == status("finished") and response.read_json("ASSETS") is None
    response.head.id = message.infer_response.id = "another"
    assert read(response.to_bytes()) == message


def test_an_error_survives() -> None:
    response = Response.parse(failure("INVALID_ARG: steps = 0 ü"))
    assert response.error == "INVALID_ARG: steps = 0 ü" and not response.names
    assert read(response.to_bytes()).error_message == response.error


def test_outputs_can_be_taken_out() -> None:
    response = Response.parse(answer(STATUS=status("denoising"), ASSETS=b"file", GAUSSIANS=b"splats"))
    rest = Response.parse(response.without({"STATUS", "ASSETS"}).to_bytes())
    assert rest.names == ["GAUSSIANS"] and bytes(rest.payload[0][4:]) == b"splats"
    assert response.names == ["STATUS", "ASSETS", "GAUSSIANS"], "the response itself stays as it is"


WHOLE = request().SerializeToString()


@pytest.mark.parametrize("cut", range(1, len(WHOLE), 3))
def test_what_is_cut_short_is_no_request_or_another_one(cut: int) -> None:
    """A message may end after any whole field; nothing else passes, and nothing hangs."""
    try:
        parsed = Request.parse(WHOLE[:cut])
    except ValueError:
        with pytest.raises(Exception, match="."):
            pb.ModelInferRequest.FromString(WHOLE[:cut])
    else:
        assert pb.ModelInferRequest.FromString(WHOLE[:cut]) == pb.ModelInferRequest.FromString(parsed.to_bytes())


@pytest.mark.parametrize(
    "data", [b"\xff" * 20, b"\x00", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0b\x0c", b"\x0a"]
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Request.parse(data)
    with pytest.raises(ValueError):
        Response.parse(data)


def test_a_response_whose_outputs_lack_their_bytes_is_refused() -> None:
    message = read(answer(ASSETS=b"file"))
    del message.infer_response.raw_output_contents[:]
    with pytest.raises(ValueError, match="1 outputs with the bytes of 0"):
        Response.parse(message.SerializeToString())
