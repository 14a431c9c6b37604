"""The edge in front of a real tritonserver with pico: what clients see, and what becomes of requests when it dies."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import grpc
import numpy as np
import pytest
from diffsplat_client import Client, Finished, Progress
from diffsplat_client.grpc_transport import GrpcTransport
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from benchmarks.quality.truth import EVALUATION_SEED
from diffsplat.bundle import Bundle
from diffsplat.serving.edge.service import Service
from diffsplat.serving.server.processes import find_stubs
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from tests.reconstruction_views import sample_request, unseen_samples
from tests.serving.processes import TIMEOUT_S, wait_for

pytestmark = pytest.mark.triton

LONG_STEPS = 200
RESTART_S = 500.0  # a restart takes as long as a start, on a busy machine minutes
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "red", "green")
CLIENT = """
import sys
from diffsplat_client import Client, Progress
for event in Client(sys.argv[1]).stream("a red cube", steps=200):
    if isinstance(event, Progress):
        print("running", flush=True)
"""


@pytest.fixture(scope="module")
def service(pico_repository: Path) -> Iterator[Service]:
    policy = SupervisorPolicy(probe_interval_s=0.5, restart_delays_s=(0.0,))
    with Service(pico_repository, policy=policy) as service:
        yield service
        assert not service.edge.busy


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.grpc_url, timeout_s=TIMEOUT_S) as client:
        yield client


def wait_until_idle(service: Service) -> None:
    wait_for(lambda: service.supervisor.server.requests_in_flight() == 0 and not service.edge.busy)


def test_results_are_those_of_triton(service: Service, client: Client, four_views: np.ndarray) -> None:
    with Client(service.supervisor.server.grpc_url) as direct:
        options = {"seed": 3, "steps": 4, "formats": ("ply",), "frame_poses": four_views, "frame_size": 64}
        expected, got = (one.generate("a red cube", **options) for one in (direct, client))
    assert got.cloud is None or np.array_equal(got.cloud.to_array(), expected.cloud.to_array())
    assert got.assets == expected.assets and np.array_equal(got.frames, expected.frames)
    assert got.warnings == expected.warnings and got.served == expected.served


def test_the_seed_that_the_edge_draws_is_reported_and_right(client: Client) -> None:
    drawn = client.generate("a red cube", steps=2)
    again = client.generate("a red cube", steps=2, seed=drawn.seed)
    assert np.array_equal(drawn.cloud.to_array(), again.cloud.to_array())


def test_status_sees_every_stage_through_it(client: Client) -> None:
    status = client.status()
    assert status.ready and {model.state for model in status.models} == {"READY"}


def test_many_requests_share_one_stream(service: Service) -> None:
    """As perf_analyzer and Triton's own clients do: interleaved by id, and each with a marked end."""
    sending: Queue[pb.ModelInferRequest | None] = Queue()
    ids = [str(number) for number in range(4)]
    for request_id in ids:
        message = pb.ModelInferRequest(model_name="diffsplat", id=request_id)
        message.parameters["triton_enable_empty_final_response"].bool_param = True
        for name, datatype, raw in (
            ("PROMPT", "BYTES", b"\x0a\0\0\0a red cube"),
            ("STEPS", "INT32", (8).to_bytes(4, "little")),
            ("SEED", "INT64", (5).to_bytes(8, "little")),
        ):
            message.inputs.add(name=name, datatype=datatype, shape=[1])
            message.raw_input_contents.append(raw)
        sending.put(message)
    ended: list[str] = []
    splats: dict[str, bytes] = {}
    with grpc.insecure_channel(service.grpc_url, [("grpc.max_receive_message_length", -1)]) as channel:
        for answer in GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(sending.get, None)):
            assert not answer.error_message, answer.error_message
            response = answer.infer_response
            names = [output.name for output in response.outputs]
            if "GAUSSIANS" in names:
                splats[response.id] = response.raw_output_contents[names.index("GAUSSIANS")]
            if response.parameters["triton_final_response"].bool_param:
                ended.append(response.id)
                if len(ended) == len(ids):
                    sending.put(None)
    assert sorted(ended) == ids and sorted(splats) == ids and len(set(splats.values())) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "network gone"])
def test_a_client_that_vanishes_frees_its_slot(service: Service, number: signal.Signals) -> None:
    """A stopped process acknowledges nothing, as one whose network is gone."""
    process = subprocess.Popen([sys.executable, "-c", CLIENT, service.grpc_url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        (job,) = service.edge.jobs
        process.send_signal(number)
        wait_for(lambda: job.end_state != "running")
        assert job.end_state == "cancelled", "its 200 steps were not run to the end"
        wait_until_idle(service)
    finally:
        process.kill()
        process.communicate()


def test_a_stream_that_is_closed_stops_its_request(service: Service, client: Client) -> None:
    stream = client.stream("a red cube", steps=LONG_STEPS)
    next(stream)
    (job,) = service.edge.jobs
    stream.close()
    wait_for(lambda: job.end_state != "running")
    assert job.end_state == "cancelled"
    wait_until_idle(service)


def test_a_stop_under_the_requests_id_ends_it(service: Service, client: Client) -> None:
    with (
        client.stream("a red cube", steps=LONG_STEPS) as events,
        contextlib.closing(GrpcTransport(service.grpc_url)) as wire,
    ):
        next(events)
        (answer,) = wire.stream("denoise", {"STOP": np.ones(1, np.bool_)}, events.request_id, TIMEOUT_S)
        assert answer["STOP_ANSWER"].item() == b"requested"
        with pytest.raises(Exception, match="the request was stopped"):
            list(events)
    wait_until_idle(service)


def end_right_after(service: Service, kill: Callable[[], None]) -> None:
    """Eight in flight when `kill` is called: all end right, each once, and no progress runs backwards."""
    prompts = [f"a {colour} cube" for colour in COLOURS]
    under_way = threading.Event()
    with Client(service.grpc_url, timeout_s=RESTART_S) as client:
        options = {"seed": 1, "steps": 20}
        expected = {prompt: client.generate(prompt, **options).cloud.to_array() for prompt in set(prompts)}

        def generate(prompt: str) -> tuple[list[np.ndarray], list[int]]:
            clouds, steps = [], []
            with client.stream(prompt, **options) as events:
                for event in events:
                    if isinstance(event, Progress):
                        steps.append(event.step)
                        under_way.set()
                    elif isinstance(event, Finished):
                        clouds.append(event.result.cloud.to_array())
            return clouds, steps

        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = [pool.submit(generate, prompt) for prompt in prompts]
            wait_for(lambda: len(service.edge.jobs) == len(prompts) and under_way.is_set())
            jobs = service.edge.jobs
            kill()
            results = [answer.result(RESTART_S) for answer in answers]
    for prompt, (clouds, steps) in zip(prompts, results, strict=True):
        assert len(clouds) == 1 and np.array_equal(clouds[0], expected[prompt])
        assert steps == sorted(steps)  # a request that pauses reports its step again
    assert [job.end_state for job in jobs] == ["finished"] * len(prompts)
    assert max(job.runs_begun for job in jobs) == 2


def test_requests_survive_the_death_of_the_server(service: Service) -> None:
    restarts = service.supervisor.restarts
    end_right_after(service, lambda: os.kill(service.supervisor.server.pid, signal.SIGKILL))
    assert service.supervisor.restarts == restarts + 1


@pytest.mark.parametrize("model", ["denoise", "decode"])
def test_requests_survive_the_death_of_a_stage_and_the_others_work_on(
    service: Service, pico_bundle: Bundle, model: str
) -> None:
    """Reconstructions, which do not need `denoise`, are answered all the while."""
    supervisor = service.supervisor
    before = find_stubs(supervisor.server.pid)
    restarts, reloads = supervisor.restarts, supervisor.reloads[model]
    (sample,) = unseen_samples(pico_bundle.spec.geometry, EVALUATION_SEED, 1)
    views = sample_request(sample, formats=("raw",))
    meanwhile: list[bool] = []

    def reconstruct() -> None:
        with Client(service.grpc_url, timeout_s=RESTART_S) as client:
            while supervisor.reloads[model] == reloads:
                down = supervisor.run_of("diffsplat") is None
                client.reconstruct(views)
                meanwhile.append(down and supervisor.run_of("diffsplat") is None)

    with ThreadPoolExecutor(1) as pool:

        def kill() -> None:
            os.kill(next(stub.pid for stub in before if stub.model == model), signal.SIGKILL)
            others.append(pool.submit(reconstruct))

        others: list[Future[None]] = []
        end_right_after(service, kill)
        others[0].result()
    assert any(meanwhile), "one began and ended while the stage was loaded"
    assert supervisor.restarts == restarts and supervisor.reloads[model] == reloads + 1
    kept = {stub for stub in before if stub.model != model}
    assert kept <= set(find_stubs(supervisor.server.pid))
    wait_until_idle(service)
