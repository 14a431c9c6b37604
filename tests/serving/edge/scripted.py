"""A Triton that a test drives message by message, and messages to drive it with."""

import asyncio
import json
from collections.abc import AsyncIterator

from tritonclient.grpc import service_pb2 as pb

from diffsplat.serving.edge.admission import Inference, admit
from diffsplat.serving.edge.upstream import UpstreamGoneError
from diffsplat.serving.edge.wire import FINAL_RESPONSE

PATIENCE_S = 60.0  # longer than any wait of a test that passes


def request(request_id: str = "mine", model: str = "diffsplat", **tensors: bytes) -> pb.ModelInferRequest:
    """A request whose tensors are BYTES [1]; without any, a generation."""
    message = pb.ModelInferRequest(model_name=model, id=request_id)
    for name, value in (tensors or {"PROMPT": b"a red cube"}).items():
        message.inputs.add(name=name, datatype="BYTES", shape=[1])
        message.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    return message


def admitted(message: pb.ModelInferRequest | None = None) -> Inference:
    return admit((message or request()).SerializeToString())


def answer(**outputs: object) -> bytes:
    """A response as Triton sends it: JSON, or bytes as they are, or several of these."""
    message = pb.ModelStreamInferResponse()
    message.infer_response.model_name = "diffsplat"
    for name, value in outputs.items():
        values = value if isinstance(value, list) else [value]
        contents = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
        message.infer_response.outputs.add(name=name, datatype="BYTES", shape=[len(contents)])
        message.infer_response.raw_output_contents.append(
            b"".join(len(content).to_bytes(4, "little") + content for content in contents)
        )
    return message.SerializeToString()


def status(phase: str, step: int = 0, **more: object) -> dict[str, object]:
    return {"phase": phase, "step": step, "steps": 20, "seed": 1, "elevation_deg": 10.0, **more}


def failure(text: str) -> bytes:
    return pb.ModelStreamInferResponse(error_message=text).SerializeToString()


def read(message: bytes) -> pb.ModelStreamInferResponse:
    return pb.ModelStreamInferResponse.FromString(message)


def statuses(messages: list[bytes]) -> list[tuple[str, int]]:
    """Phase and step of every STATUS."""
    found = []
    for message in messages:
        response = read(message).infer_response
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
            if output.name == "STATUS":
                values = json.loads(content[4:])
                found.append((values["phase"], values["step"]))
    return found


def outputs(messages: list[bytes]) -> list[str]:
    """Names of all outputs but STATUS."""
    return [out.name for message in messages for out in read(message).infer_response.outputs if out.name != "STATUS"]


def is_final(message: bytes) -> bool:
    return read(message).infer_response.parameters[FINAL_RESPONSE].bool_param


class Away:
    """No server behind the edge."""

    def run_of(self, model: str) -> int | None:
        return None


class ScriptedUpstream:
    """Every request takes the next script: bytes are sent, an exception is raised, an event is waited for.

    `run` is that of the server; a script may call functions, such as one that sets it.
    """

    def __init__(self, *scripts: list[object]) -> None:
        self.scripts = list(scripts)
        self.requests: list[pb.ModelInferRequest] = []
        self.stopped: list[str] = []
        self.ended = 0  # scripts that were played to the end
        self.sent = 0
        self.run: int | None = 0
        self.a_stop = asyncio.Event()

    def run_of(self, model: str) -> int | None:
        return self.run

    async def infer(self, message: bytes) -> AsyncIterator[bytes]:
        self.requests.append(pb.ModelInferRequest.FromString(message))
        for item in self.scripts.pop(0):
            if isinstance(item, asyncio.Event):
                await asyncio.wait_for(item.wait(), PATIENCE_S)
            elif isinstance(item, bytes):
                self.sent += 1
                yield item
            elif callable(item):
                item()
            else:
                assert item == "dies"
                self.run = None
                raise UpstreamGoneError("the connection to it broke (UNAVAILABLE)")
        self.ended += 1

    async def stop(self, request_id: str) -> None:
        self.stopped.append(request_id)
        self.a_stop.set()
