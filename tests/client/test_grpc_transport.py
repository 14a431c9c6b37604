"""The gRPC transport over a real socket, against a server that speaks Triton's protocol and misbehaves on demand."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from diffsplat_client import (
    Client,
    ContractMismatchError,
    Finished,
    InvalidRequestError,
    Progress,
    RequestCancelledError,
    RequestTimeoutError,
    ServerError,
    ServerUnavailableError,
)
from diffsplat_client.contract import CONTRACT_VERSION
from diffsplat_client.probes import PROBE_ID
from diffsplat_client.transport import GrpcTransport, TransportError
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from tests.stream_closing import when_read

HANGS_S = 60.0  # longer than any wait of a test that goes well
DATATYPES = {"f": "FP32", "u": "UINT8", "O": "BYTES"}


def to_response(tensors: dict[str, np.ndarray]) -> pb.ModelStreamInferResponse:
    response = pb.ModelStreamInferResponse()
    for name, array in tensors.items():
        response.infer_response.outputs.add(name=name, datatype=DATATYPES[array.dtype.kind], shape=array.shape)
        content = array.tobytes() if array.dtype.kind != "O" else len(array[0]).to_bytes(4, "little") + array[0]
        response.infer_response.raw_output_contents.append(content)
    return response


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers according to the prompt; records requests, metadata and STOPs."""

    def __init__(self, fakes) -> None:
        self.fakes = fakes
        self.contract = str(CONTRACT_VERSION)
        self.requests: list[pb.ModelInferRequest] = []
        self.metadata: dict[str, str] = {}
        self.decode_says = "INVALID_ARG: LATENTS is missing"
        self.stopped = threading.Event()
        self.ended = threading.Event()
        self.go = threading.Event()

    def ServerReady(self, request, context):
        return pb.ServerReadyResponse(ready=True)

    def ModelConfig(self, request, context):
        response = pb.ModelConfigResponse()
        response.config.name = request.name
        response.config.parameters["contract_version"].string_value = self.contract
        return response

    def ModelMetadata(self, request, context):
        return pb.ModelMetadataResponse(name=request.name, versions=["1"])

    def ModelStreamInfer(self, requests, context):
        fakes = self.fakes
        for request in requests:
            if request.id == PROBE_ID:
                if request.model_name == "decode":
                    yield pb.ModelStreamInferResponse(error_message=self.decode_says)
                continue
            self.requests.append(request)
            if request.model_name == "denoise":
                self.stopped.set()
                yield to_response({"STOP_ANSWER": fakes.text(b"requested")})
                continue
            self.metadata = {key: value for key, value in context.invocation_metadata()}
            names = [tensor.name for tensor in request.inputs]
            prompt = request.raw_input_contents[names.index("PROMPT")][4:].decode()
            yield to_response(fakes.status("denoising", 1))
            if prompt == "invalid":
                text = "in ensemble 'diffsplat', INVALID_ARG: steps = 0: must be in 1 .. 200"
                yield pb.ModelStreamInferResponse(error_message=text)
            elif prompt == "refused":
                text = "[request id: 1] unexpected shape for input 'STEPS' for model 'diffsplat'. "
                yield pb.ModelStreamInferResponse(error_message=text)
            elif prompt == "fails":
                yield pb.ModelStreamInferResponse(error_message="in ensemble 'diffsplat', INTERNAL: decode failed")
            elif prompt == "stub":
                yield pb.ModelStreamInferResponse(error_message="Stub process 'decode_0_0' is not healthy.")
            elif prompt == "stopped":
                yield pb.ModelStreamInferResponse(error_message="in ensemble 'diffsplat', CANCELLED: stopped")
            elif prompt == "full":
                yield pb.ModelStreamInferResponse(error_message="OVERLOADED: 64 wait [retry_after_s=2.5]")
            elif prompt == "short":
                response = to_response(fakes.finished())
                response.infer_response.raw_output_contents[1] = b"123"
                yield response
            elif prompt == "waits":
                assert self.go.wait(HANGS_S)
            elif prompt == "hangs":
                context.add_callback(self.ended.set)
                self.ended.wait(HANGS_S)
                return
            yield to_response(fakes.finished(GAUSSIANS=np.ones((500_000, 14), np.float32)))


@pytest.fixture
def server(fakes):
    servicer = Servicer(fakes)
    with ThreadPoolExecutor(4) as pool:
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]  # as Triton's
        server = grpc.server(pool, options=[*unlimited, ("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servicer.url, servicer.server = f"127.0.0.1:{port}", server
        yield servicer
        servicer.ended.set()
        server.stop(None).wait(5)


@pytest.fixture
def client(server):
    with Client(server.url, timeout_s=2 * HANGS_S) as client:
        yield client


def test_a_generation_crosses_the_wire(client, server) -> None:
    poses = np.zeros((0, 4), np.float32)
    image = bytes(range(256)) * 20_000 + b"\0"  # 5 MB
    options = {"seed": 5, "triangle_guidance": True, "image": image}
    with client.stream("ü 🟥", frame_poses=poses, **options) as events:
        progress, last = list(events)
    assert isinstance(progress, Progress) and isinstance(last, Finished)
    assert len(last.result.cloud) == 500_000  # 28 MB: more than gRPC's own limit of 4
    (request,) = server.requests
    assert request.model_name == "diffsplat" and request.id == last.result.request_id
    inputs = zip(request.inputs, request.raw_input_contents, strict=True)
    sent = {tensor.name: (tensor.datatype, list(tensor.shape), raw) for tensor, raw in inputs}
    assert sent["PROMPT"] == ("BYTES", [1], b"\x07\0\0\0" + "ü 🟥".encode())
    assert sent["IMAGE"] == ("BYTES", [1], len(image).to_bytes(4, "little") + image)
    assert sent["SEED"] == ("INT64", [1], (5).to_bytes(8, "little"))
    assert sent["TRIANGLE_GUIDANCE"] == ("BOOL", [1], b"\1")
    assert sent["FRAME_POSES"] == ("FP32", [0, 4], b"")
    assert "triton_grpc_error" not in server.metadata, "Triton 2.51 crashes on it"


def test_many_threads_share_a_client(client) -> None:
    with ThreadPoolExecutor(3) as pool:
        clouds = list(pool.map(lambda i: client.generate(f"prompt {i}").cloud, range(3)))
    assert [len(cloud) for cloud in clouds] == [500_000] * 3


def test_errors_of_the_server(client) -> None:
    with pytest.raises(InvalidRequestError, match="^steps = 0: must be in 1 .. 200$"):
        client.generate("invalid")
    with pytest.raises(InvalidRequestError, match="unexpected shape for input 'STEPS'"):
        client.generate("refused")
    with pytest.raises(ServerError, match="INTERNAL: decode failed"):
        client.generate("fails")
    with pytest.raises(ServerError, match="Stub process"):
        client.generate("stub")
    with pytest.raises(RequestCancelledError):
        client.generate("stopped")
    with pytest.raises(ServerUnavailableError, match=r"overloaded \(64 wait; it expects room in 2.5 s\)") as caught:
        client.generate("full")
    assert (caught.value.error_type, caught.value.retry_after_s) == ("OVERLOADED", 2.5)
    with pytest.raises(ServerError, match=r"GAUSSIANS|FP32 tensor \[5, 14\] came in 3 bytes"):
        client.generate("short")
    assert len(client.generate("and works on").cloud) == 500_000


def test_the_timeout_ends_it_and_stops_it(client, server) -> None:
    for timeout_s in (0.5, 4.0, 32.0):  # until it suffices to send the request on a busy machine
        with pytest.raises(RequestTimeoutError):
            client.generate("hangs", timeout_s=timeout_s)
        if server.requests:
            break
    assert server.stopped.wait(HANGS_S) and server.ended.wait(HANGS_S)
    assert server.requests[1].id == server.requests[0].id


@pytest.mark.parametrize("timeout_s", [1e-6, 0.001])
def test_a_timeout_too_short_to_ask_anything(server, timeout_s) -> None:
    with Client(server.url) as client, pytest.raises(RequestTimeoutError):
        client.generate("hangs", timeout_s=timeout_s)


def test_closing_from_another_thread(client, server) -> None:
    events = client.stream("hangs")
    next(events)
    closer = when_read(events, events.close)
    with pytest.raises(RequestCancelledError):
        next(events)
    closer.join(HANGS_S)
    assert server.stopped.wait(HANGS_S) and server.ended.wait(HANGS_S)


def test_a_server_that_dies_is_noticed(client, server) -> None:
    events = client.stream("hangs")
    next(events)
    killer = when_read(events, lambda: server.server.stop(0))
    with pytest.raises(ServerUnavailableError, match="went away"):
        next(events)
    killer.join(HANGS_S)
    with pytest.raises(ServerUnavailableError, match="no server answers"):
        client.generate("x")


FORKING = """
import os, sys, threading
from diffsplat_client import Client, ServerUnavailableError

client = Client(sys.argv[1])
events = client.stream("waits")
next(events)
held, forked = threading.Event(), threading.Event()


def work() -> None:  # as a thread of grpc does
    with events._responses._stream._call._state.condition:
        held.set()
        forked.wait()


threading.Thread(target=work).start()
held.wait()
child = os.fork()
forked.set()
if not child:
    for call in (lambda: next(events), lambda: client.generate("x"), client.status):
        try:
            call()
        except ServerUnavailableError as error:
            assert "make a Client in the process that uses it" in str(error)
        else:
            sys.exit(1)
    events.close()
    client.close()
    del events, client
    sys.exit(0)
print(os.waitpid(child, 0)[1], flush=True)
print(type(next(events)).__name__, flush=True)
"""


def test_a_forked_child_leaves_its_parents_request_alone(server) -> None:
    """It inherits the stream without the threads that serve it; it must neither hang nor stop the request."""
    script = [sys.executable, "-c", FORKING, server.url]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(script, **pipes, start_new_session=True) as process:
        timer = threading.Timer(HANGS_S, os.killpg, (process.pid, signal.SIGKILL))  # the child has the pipes too
        timer.start()
        assert process.stdout.readline() == "0\n", "the child's exit status"
        assert not server.stopped.is_set()
        server.go.set()
        out, err = process.communicate()
        timer.cancel()
    assert out == "Finished\n", err
    assert not server.stopped.is_set()


def test_contract_and_status(client, server) -> None:
    status = client.status()
    assert status.contract_version == CONTRACT_VERSION and status.ready and len(status.models) == 6
    server.decode_says = "Stub process 'decode_0_0' is not healthy."
    status = client.status()
    assert [model for model in status.models if model.state != "READY"] == [
        ("decode", "1", "UNAVAILABLE", server.decode_says)
    ]
    assert not status.ready
    server.contract = "999"
    with pytest.raises(ContractMismatchError, match="version 999"):
        client.generate("x")


def test_a_port_without_a_server() -> None:
    transport = GrpcTransport("127.0.0.1:1")
    with pytest.raises(TransportError) as caught:
        transport.server_ready(2)
    transport.close()
    assert caught.value.code == "UNAVAILABLE"


def test_a_closed_client_stops_its_requests_and_can_be_used_again(client, server) -> None:
    events = client.stream("hangs")
    next(events)
    client.close()
    assert server.stopped.wait(HANGS_S)
    assert list(events) == []
    assert client.generate("a red cube").seed == 7


def test_a_closed_connection_is_a_typed_error(server) -> None:
    transport = GrpcTransport(server.url)
    transport.close()
    with pytest.raises(TransportError, match="CANCELLED"):
        transport.server_ready(1.0)
    with pytest.raises(TransportError, match="CANCELLED"):
        transport.stream("diffsplat", {}, "id", 1.0)
