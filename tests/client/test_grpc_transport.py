"""The gRPC transport over a real socket, against a server that speaks Triton's protocol and misbehaves on demand."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

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
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.transport import TransportError

from tests.client.protocol_server import HANGS_S
from tests.stream_closing import when_read


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


def test_all_requests_share_one_connection(client, server) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: client.generate(f"small {i}"), range(8)))
    assert len(server.peers) == 1


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
    assert server.hanging.wait(HANGS_S)
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
    with events._reader._responses._stream.responses._call._state.condition:
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
