"""What must hold for an input in one process: it is taken, or refused with a reason, and nothing else.

Each check gets one input of its strategy, says what became of it, and fails with any other exception.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from diffsplat_client.contract import MODELS, TensorSpec
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import GenerationRequest
from diffsplat_client.tensor_bytes import from_bytes
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from benchmarks.fuzz import inputs
from diffsplat.serving.edge.admission import RefusedError, admit
from diffsplat.serving.edge.http_body import read_body
from diffsplat.serving.edge.wire import Response
from diffsplat.stages.envelope import Envelope, OutputEnvelope

if TYPE_CHECKING:
    from diffsplat.pipeline import Pipeline

TAKEN, REFUSED = "taken", "refused"


class Check(NamedTuple):
    """What is sent, and what looks at it."""

    inputs: st.SearchStrategy[Any]
    run: Callable[[Any], str]


def admission(data: bytes) -> str:
    """The edge refuses a message, or makes one for Triton that has the same tensors."""
    try:
        inference = admit(data)
    except RefusedError as error:
        assert error.code == "INVALID_ARG" and str(error), error
        return REFUSED
    sent = pb.ModelInferRequest.FromString(inference.message("an-id", elapsed_s=1.0))
    came = pb.ModelInferRequest.FromString(data)
    assert sent.id == "an-id" and [one.name for one in sent.inputs[: len(came.inputs)]] == [
        one.name for one in came.inputs
    ]
    return TAKEN


def answers(data: bytes) -> str:
    """What comes from Triton is a response, or no response."""
    try:
        response = Response.parse(data)
    except ValueError:
        return REFUSED
    assert isinstance(response.to_bytes(), bytes)
    return TAKEN


def http_body(body: bytes) -> str:
    """The HTTP front makes a request of a body, or refuses it by name."""
    try:
        read_body(body)
    except RefusedError as error:
        assert error.code == "INVALID_ARG" and str(error), error
        return REFUSED
    return TAKEN


def envelope(text: str) -> str:
    """A later stage reads a REQUEST tensor, or refuses it by name."""
    outcome = REFUSED
    for kind in (Envelope, OutputEnvelope):
        try:
            kind.from_json(text)
            outcome = TAKEN
        except InvalidRequestError as error:
            assert str(error)
    return outcome


def tensors_of(data: bytes) -> tuple[str, dict[str, np.ndarray]] | None:
    """Model and tensors as a stage gets them; None if Triton refuses their names, types or shapes."""
    message = pb.ModelInferRequest.FromString(admit(data).message("an-id"))
    specs = {spec.name: spec for spec in MODELS[message.model_name].inputs}
    tensors = {}
    for tensor, content in zip(message.inputs, message.raw_input_contents, strict=False):
        spec = specs.get(tensor.name)
        if spec is None or spec.datatype != tensor.datatype or not _fits(spec, list(tensor.shape)):
            return None
        tensors[tensor.name] = from_bytes(tensor.datatype, tensor.shape, content)
    return message.model_name, tensors


def _fits(spec: TensorSpec, shape: list[int]) -> bool:
    return len(shape) == len(spec.dims) and all(dim in (-1, size) for dim, size in zip(spec.dims, shape, strict=True))


def stages_of(pipeline: "Pipeline") -> Callable[[bytes], str]:
    """A check of the first stages with a real bundle: what the edge takes is encoded, or refused by name."""

    def check(data: bytes) -> str:
        try:
            found = tensors_of(data)
        except RefusedError:
            return REFUSED
        if found is None:
            return REFUSED
        model, tensors = found
        try:
            if model == "diffsplat":
                pipeline.denoise.check(pipeline.encode.run(GenerationRequest.from_tensors(tensors)))
            elif model == "diffsplat_reconstruct":
                ReconstructionRequest.from_tensors(tensors).validate()
        except InvalidRequestError as error:
            assert str(error)
            return REFUSED
        return TAKEN

    return check


CHECKS = {
    "messages at the edge": Check(inputs.messages(), admission),
    "damaged messages at the edge": Check(inputs.damaged(), admission),
    "answers of Triton": Check(inputs.damaged(), answers),
    "bodies of HTTP": Check(inputs.json_bodies(), http_body),
    "REQUEST tensors": Check(inputs.envelopes(), envelope),
}
