"""The edge's calls over real sockets, in front of a small server that speaks Triton's protocol."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from diffsplat.serving.edge.clients import ClientLimits
from diffsplat.serving.edge.server import Edge, EdgeSettings
from diffsplat.serving.errors import ServerStartError
from tests.serving.edge.scripted import PATIENCE_S, answer, read, request, status
from tests.serving.processes import wait_for

LIMITS = ClientLimits(max_requests=3, max_request_bytes=2**20)


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers a step at a time until it is stopped or told to finish."""

    def __init__(self) -> None:
        self.stops: dict[str, threading.Event] = {}
        self.asked: list[pb.ModelInferRequest] = []
        self.read_to_the_end: list[str] = []
        self.cancelled: list[str] = []
        self.finish = threading.Event()
        self.changed = threading.Condition()

    def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        raise AssertionError("the edge knows without Triton")

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        if request.name not in ("denoise", "diffsplat"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model {request.name}")
        return pb.ModelMetadataResponse(name=request.name, versions=["1", "2"])

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:
        (message,) = requests
        stopped = self.stops.setdefault(message.id, threading.Event())
        if message.model_name == "denoise":
            stopped.set()
            return
        with self.changed:
            self.asked.append(message)
            self.changed.notify_all()
        for step in itertools.count(1):
            yield read(answer(STATUS=status("denoising", step)))
            if not context.is_active():
                self.cancelled.append(message.id)
                return
            if stopped.wait(0.01) or self.finish.is_set():
                break
        phase = "ended" if stopped.is_set() else "finished"
        yield read(answer(STATUS=status(phase, step, end_state="cancelled"), GAUSSIANS=b"splats"))
        with self.changed:
            self.read_to_the_end.append(message.id)
            self.changed.notify_all()

    def wait_for(self, condition: Any) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S)


class Runs:
    run: int | None = 0

    def run_of(self, model: str) -> int | None:
        return self.run


@pytest.fixture
def triton() -> Iterator[tuple[Triton, str]]:
    servicer = Triton()
    with ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield servicer, f"127.0.0.1:{port}"
        servicer.finish.set()
        server.stop(None).wait(PATIENCE_S)


@pytest.fixture
def edge(triton: tuple[Triton, str]) -> Iterator[Edge]:
    with Edge(Runs(), triton[1], settings=EdgeSettings(limits=LIMITS)) as edge:
        yield edge


@pytest.fixture
def stub(edge: Edge) -> Iterator[Any]:
    with grpc.insecure_channel(edge.grpc_url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def stop_of(request_id: str) -> pb.ModelInferRequest:
    stop = pb.ModelInferRequest(model_name="denoise", id=request_id)
    stop.inputs.add(name="STOP", datatype="BOOL", shape=[1])
    stop.raw_input_contents.append(b"\1")
    return stop


def send(stub: Any, *messages: pb.ModelInferRequest) -> Any:
    return stub.ModelStreamInfer(iter(messages), timeout=PATIENCE_S)


def ids_until(answers: Any, count: int) -> set[str]:
    """Ids of the answers, until there are so many different ones."""
    seen: set[str] = set()
    while len(seen) < count:
        seen.add(next(answers).infer_response.id)
    return seen


def test_a_client_that_leaves_stops_its_requests_and_they_are_read_to_their_end(
    stub: Any, edge: Edge, triton: tuple[Triton, str]
) -> None:
    answers = send(stub, request("one"), request("two"))
    assert ids_until(answers, 2) == {"one", "two"}
    answers.cancel()
    triton[0].wait_for(lambda: len(triton[0].read_to_the_end) == 2)
    assert not triton[0].cancelled
    assert {message.id for message in triton[0].asked} == set(triton[0].read_to_the_end)
    assert not {"one", "two"} & set(triton[0].read_to_the_end), "Triton sees ids that nobody can guess"


def test_clients_that_leave_at_any_moment_leave_nothing_behind(
    stub: Any, edge: Edge, triton: tuple[Triton, str]
) -> None:
    for number in range(40):
        call = send(stub, *(request(f"{number}.{part}") for part in range(3)))
        if number % 4 == 3:
            next(call)
        call.cancel()
    wait_for(lambda: not edge.busy)
    assert not triton[0].cancelled


def test_a_deadline_of_the_call_is_a_client_that_leaves(stub: Any, triton: tuple[Triton, str]) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(stub.ModelStreamInfer(iter([request("one")]), timeout=0.5))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    if triton[0].asked:  # the call may have passed its deadline before it arrived
        triton[0].wait_for(lambda: triton[0].read_to_the_end)


@pytest.mark.parametrize("way", ["stream", "call"])
def test_a_stop_ends_one_request_and_leaves_the_others(
    stub: Any, edge: Edge, triton: tuple[Triton, str], way: str
) -> None:
    answers = send(stub, request("one"), request("two"))
    ids_until(answers, 2)
    assert stop_answers(stub, way, "one") == [("one", b"requested")]
    for message in answers:
        if message.infer_response.id == "one" and b"cancelled" in message.infer_response.raw_output_contents[0]:
            break
    wait_for(lambda: len(edge.jobs) == 1)
    (left,) = edge.jobs
    assert left.inference.client_id == "two"
    triton[0].finish.set()
    assert {message.infer_response.id for message in answers} == {"two"}
    wait_for(lambda: not edge.jobs)
    assert stop_answers(stub, way, "two") == [("two", b"already_finished")]
    assert stop_answers(stub, way, "three") == [("three", b"not_found")]


def stop_answers(stub: Any, way: str, request_id: str) -> list[tuple[str, bytes]]:
    """What is said to a STOP: ids and answers."""
    stop = stop_of(request_id)
    sent = [stub.ModelInfer(stop)] if way == "call" else [answer.infer_response for answer in send(stub, stop)]
    return [(answer.id, answer.raw_output_contents[0][4:]) for answer in sent]


def test_a_stop_that_asks_for_its_end_is_told(stub: Any) -> None:
    stop = stop_of("nobody")
    stop.parameters["triton_enable_empty_final_response"].bool_param = True
    _, end = send(stub, stop)
    assert end.infer_response.id == "nobody" and end.infer_response.parameters["triton_final_response"].bool_param


def test_a_client_has_so_many_requests_and_no_more(stub: Any, triton: tuple[Triton, str]) -> None:
    answers = send(stub, *(request(str(number)) for number in range(4)))
    refused = next(answer for answer in answers if answer.error_message)
    assert refused.error_message.startswith("UNAVAILABLE: 3 requests") and refused.infer_response.id == "3"
    triton[0].finish.set()
    assert {answer.infer_response.id for answer in answers} <= {"0", "1", "2"}


def test_bad_requests_are_refused_and_the_stream_goes_on(stub: Any, triton: tuple[Triton, str]) -> None:
    triton[0].finish.set()
    answers = list(send(stub, request("bad", model="decode", LATENTS=b""), request("good")))
    assert answers[0].error_message.startswith("INVALID_ARG: model = 'decode'")
    assert answers[0].infer_response.id == "bad"
    assert [message.infer_response.id for message in answers[1:]][-1] == "good"
    assert len(triton[0].asked) == 1


def test_a_message_above_the_limit_is_refused(stub: Any, triton: tuple[Triton, str]) -> None:
    with pytest.raises(grpc.RpcError) as error:
        list(send(stub, request("large", PROMPT=b"x" * 2**20)))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and not triton[0].asked


def test_questions_are_answered_by_the_one_who_knows(stub: Any, edge: Edge) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest()).live and stub.ServerReady(pb.ServerReadyRequest()).ready
    assert list(stub.ModelMetadata(pb.ModelMetadataRequest(name="diffsplat")).versions) == ["1", "2"]
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelMetadata(pb.ModelMetadataRequest(name="none"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND and error.value.details() == "unknown model none"
    assert stub.ModelReady(pb.ModelReadyRequest(name="diffsplat")).ready
    edge._runs.run = None  # type: ignore[misc]
    assert not stub.ServerReady(pb.ServerReadyRequest()).ready
    assert not stub.ModelReady(pb.ModelReadyRequest(name="diffsplat")).ready, "though Triton says that it is"


@pytest.mark.parametrize(
    ("method", "question"),
    [
        ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="diffsplat")),
        ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="diffsplat")),
        ("RepositoryIndex", pb.RepositoryIndexRequest()),
        ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="mine", key="/mine", byte_size=1)),
        ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
        ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="mine")),
        ("TraceSetting", pb.TraceSettingRequest()),
        ("LogSettings", pb.LogSettingsRequest()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_else_of_the_protocol_is_there(stub: Any, method: str, question: Any) -> None:
    with pytest.raises(grpc.RpcError) as error:
        getattr(stub, method)(question)
    assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_inference_without_a_stream_is_refused(stub: Any) -> None:
    with pytest.raises(grpc.RpcError, match="requests go through ModelStreamInfer") as error:
        stub.ModelInfer(request())
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_the_health_protocol_says_whether_it_takes_requests(edge: Edge) -> None:
    with grpc.insecure_channel(edge.grpc_url) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"
        edge._runs.run = None  # type: ignore[misc]
        assert check(b"") == b"\x08\x02"


def test_a_draining_edge_finishes_what_it_has(stub: Any, edge: Edge, triton: tuple[Triton, str]) -> None:
    answers = send(stub, request("one"))
    next(answers)
    assert not edge.drain(0.0) and not stub.ServerReady(pb.ServerReadyRequest()).ready
    (refused,) = send(stub, request("two"))
    assert refused.error_message.startswith("UNAVAILABLE: the server is shutting down")
    triton[0].finish.set()
    assert list(answers) and edge.drain(PATIENCE_S)


def test_one_port_has_one_edge(edge: Edge, triton: tuple[Triton, str]) -> None:
    with pytest.raises(ServerStartError, match="is in use"):
        Edge(Runs(), triton[1], port=int(edge.grpc_url.rpartition(":")[2])).start()
