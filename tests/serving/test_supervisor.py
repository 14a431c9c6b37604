"""The supervisor: what it notices, how it heals, and what it leaves alone.

A small model stands in for the stages, so that a test can make it wait, hang or compute at will; the processes, the
signals and the server are real.
"""

import contextlib
import dataclasses
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from diffsplat_client import Client, Finished, ServerUnavailableError
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.probes import PROBE_ID
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from diffsplat.serving.server.metrics import busy_instances, read_metrics
from diffsplat.serving.server.processes import find_stubs
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from diffsplat.serving.supervisor.supervisor import Supervisor
from tests.serving.obedient import COMPUTE, HANG, WAIT, ask
from tests.serving.processes import TIMEOUT_S, group_members, wait_for
from tests.serving.repositories import link_small_repository

pytestmark = pytest.mark.triton

QUICK = SupervisorPolicy(
    probe_interval_s=0.1, hang_after_s=1.0, restart_delays_s=(0.0, 0.05), drain_timeout_s=TIMEOUT_S
)


class Watched:
    """A supervisor over the small model, and what it said."""

    def __init__(self, repository: Path, policy: SupervisorPolicy) -> None:
        self.folder = repository / "diffsplat" / "1"
        self.events: list[str] = []
        self.logs = repository.parent / "logs"
        self.supervisor = Supervisor(repository, policy=policy, log_folder=self.logs, on_event=self.events.append)

    def release(self) -> None:
        (self.folder / "release").touch()

    def ask(self, wish: float, answers: list[object]) -> threading.Thread:
        """Send a request from a thread of its own; its answer, or its error, goes to `answers`."""
        return ask(self.supervisor.server.grpc_url, wish, answers)

    def wait_for_restart(self, number: int) -> None:
        wait_for(lambda: self.supervisor.restarts >= number)
        assert self.supervisor.restarts == number and self.supervisor.state == "serving"
        with contextlib.closing(GrpcTransport(self.supervisor.server.grpc_url)) as wire:
            assert list(wire.stream("diffsplat", {}, PROBE_ID, TIMEOUT_S)) == [{}]

    def wait_for_reload(self, number: int) -> None:
        wait_for(lambda: self.supervisor.reloads["diffsplat"] >= number and "works again" in self.events[-1])
        assert self.supervisor.reloads["diffsplat"] == number and self.supervisor.state == "serving"

    def wait_until_in_flight(self) -> None:
        wait_for(lambda: self.supervisor.server.requests_in_flight() == 1)


@contextlib.contextmanager
def watched(repository: Path, policy: SupervisorPolicy = QUICK) -> Iterator[Watched]:
    watch = Watched(repository, policy)
    try:
        with watch.supervisor:
            yield watch
    finally:
        watch.release()
    assert watch.supervisor.state == "stopped" and not group_members(watch.supervisor.server.pid)


def test_dead_models_and_servers_are_restarted_on_the_same_port(obedient_repository: Path) -> None:
    """A model's process killed or stopped, and the server killed: each time the server serves again and says why."""
    with watched(obedient_repository) as watch:
        url = watch.supervisor.server.grpc_url
        for number, (death, says) in enumerate(
            [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "is stopped")], start=1
        ):
            stub, _ = find_stubs(watch.supervisor.server.pid)
            os.kill(stub.pid, death)
            watch.wait_for_restart(number)
            assert watch.events[-2].startswith(f"diffsplat: process {stub.pid} {says}: restarting the server; the log")
        os.kill(watch.supervisor.server.pid, signal.SIGSTOP)
        watch.wait_for_restart(3)
        assert "hangs: no answer for" in watch.events[-2]
        answers: list[object] = []
        asked = watch.ask(WAIT, answers)
        watch.wait_until_in_flight()
        log = watch.supervisor.server.log_path
        os.kill(watch.supervisor.server.pid, signal.SIGSEGV)
        asked.join()
        assert answers == ["UNAVAILABLE"], "a client must not wait for its timeout"
        watch.wait_for_restart(4)
        assert watch.events[-2].startswith(
            "the server was killed by SIGSEGV: restarting the server; the log of this run"
        )
        assert watch.events[-2].endswith(str(log)) and "Signal (11)" in log.read_text()
        assert watch.supervisor.server.grpc_url == url
    assert len(list(watch.logs.glob("server-*.log"))) == 5


def test_a_stage_that_is_down_is_loaded_anew_and_the_server_stays(obedient_repository: Path) -> None:
    """Killed, stopped, or hung with a request. What a reload cannot heal is a restart."""
    policy = dataclasses.replace(QUICK, reload_stages=True, stable_after_s=0.0)
    with watched(obedient_repository, policy) as watch:
        supervisor = watch.supervisor
        server, url = supervisor.server.pid, supervisor.server.grpc_url
        answers: list[object] = []
        asked = watch.ask(WAIT, answers)
        watch.wait_until_in_flight()
        busy = {name for _, name in busy_instances(read_metrics(supervisor.server.metrics_url))}
        before = find_stubs(server)
        idle = next(stub for stub in before if stub.instance not in busy)
        os.kill(idle.pid, signal.SIGKILL)
        watch.wait_for_reload(1)
        assert watch.events[-2] == f"diffsplat: process {idle.pid} was killed by SIGKILL: loading diffsplat again"
        assert supervisor.run_of("diffsplat") == 1
        wait_for(lambda: len(find_stubs(server)) == 2)
        assert not set(before) & set(find_stubs(server))
        asked.join()
        assert answers == ["UNKNOWN"] and supervisor.server.requests_in_flight() == 0
        os.kill(find_stubs(server)[0].pid, signal.SIGSTOP)
        watch.wait_for_reload(2)
        assert "is stopped: loading diffsplat again" in watch.events[-2]
        answers.clear()
        hung = watch.ask(HANG, answers)
        watch.wait_for_reload(3)
        hung.join()
        assert answers == ["UNKNOWN"] and "it has a request and does not compute" in watch.events[-2]
        assert supervisor.server.requests_in_flight() == 0
        assert supervisor.restarts == 0 and supervisor.server.pid == server and supervisor.server.grpc_url == url
        (watch.folder / "broken").touch()
        os.kill(find_stubs(server)[0].pid, signal.SIGKILL)
        wait_for(lambda: supervisor.state == "restarting")
        assert any(
            "diffsplat was not loaded again: " in event and "broken on purpose" in event for event in watch.events
        )
        (watch.folder / "broken").unlink()
        watch.wait_for_restart(1)
        os.kill(supervisor.server.pid, signal.SIGSTOP)
        watch.wait_for_restart(2)
        assert supervisor.reloads["diffsplat"] == 3


def test_a_stage_that_is_down_again_soon_takes_the_server_with_it(obedient_repository: Path) -> None:
    with watched(obedient_repository, dataclasses.replace(QUICK, reload_stages=True)) as watch:
        os.kill(find_stubs(watch.supervisor.server.pid)[0].pid, signal.SIGKILL)
        watch.wait_for_reload(1)
        assert watch.supervisor._watch is not None
        os.kill(watch.supervisor._watch.stubs[0].pid, signal.SIGKILL)
        watch.wait_for_restart(1)


def test_a_failed_restart_is_tried_again(obedient_repository: Path) -> None:
    with watched(obedient_repository) as watch:
        broken = watch.folder / "broken"
        broken.touch()
        os.kill(watch.supervisor.server.pid, signal.SIGKILL)
        wait_for(lambda: len(watch.events) >= 3)
        assert watch.supervisor.state == "restarting" and watch.supervisor.restarts == 0
        assert all("model diffsplat: ValueError: broken on purpose" in event for event in watch.events[1:3])
        broken.unlink()
        watch.wait_for_restart(1)
        broken.touch()
        os.kill(watch.supervisor.server.pid, signal.SIGKILL)
        wait_for(lambda: watch.supervisor.state == "restarting")  # and is stopped while it is


def test_a_model_that_hangs_is_told_from_one_that_works(obedient_repository: Path) -> None:
    """When all instances work, a probe waits for longer than `hang_after_s`; when one hangs, the other answers."""
    with watched(obedient_repository) as watch:
        assert watch.supervisor._watch is not None
        (stage,) = watch.supervisor._watch.watch.stages
        answers: list[object] = []
        asked = [watch.ask(COMPUTE, answers) for _ in range(2)]
        wait_for(lambda: stage.waiting_s > 2 * QUICK.hang_after_s)
        watch.release()
        for thread in asked:
            thread.join()
        assert answers == [{}, {}] and not watch.events
        (watch.folder / "release").unlink()
        answers.clear()
        hung = watch.ask(HANG, answers)
        watch.wait_for_restart(1)
        hung.join()
        assert answers == ["UNAVAILABLE"]
        assert "hangs: it has a request and does not compute" in watch.events[0]


def test_models_that_compute_for_ever_are_restarted(obedient_repository: Path) -> None:
    policy = SupervisorPolicy(probe_interval_s=0.1, hang_after_s=1.0, stall_limit_s=1.5)
    with watched(obedient_repository, policy) as watch:
        answers: list[object] = []
        asked = [watch.ask(COMPUTE, answers) for _ in range(2)]
        watch.wait_for_restart(1)
        for thread in asked:
            thread.join()
        assert answers == ["UNAVAILABLE"] * 2 and "it computes without an answer" in watch.events[0]


def test_too_much_memory_is_a_restart_when_idle(obedient_repository: Path) -> None:
    policy = SupervisorPolicy(memory_limit_bytes=1, memory_interval_s=0.0, drain_timeout_s=TIMEOUT_S)
    with watched(obedient_repository, policy) as watch:
        answers: list[object] = []
        asked = watch.ask(WAIT, answers)
        watch.wait_until_in_flight()
        wait_for(lambda: len(watch.events) >= 1)
        assert "MB of memory, limit 0 MB: it will be restarted when it is idle" in watch.events[0]
        pid = watch.supervisor.server.pid
        watch.release()
        asked.join()
        assert answers == [{}], "the restart must wait for the request"
        wait_for(lambda: watch.supervisor.restarts >= 1)
        assert not group_members(pid) and "restarting the server" in watch.events[1]


def test_many_reloads_are_a_restart_when_idle(obedient_repository: Path) -> None:
    policy = dataclasses.replace(QUICK, reload_stages=True, max_reloads=1, memory_interval_s=0.0)
    with watched(obedient_repository, policy) as watch:
        os.kill(find_stubs(watch.supervisor.server.pid)[0].pid, signal.SIGKILL)
        watch.wait_for_restart(1)
        assert watch.events[2] == "the server keeps what is left of 1 dead stages: it will be restarted when it is idle"
        assert watch.supervisor.reloads["diffsplat"] == 1


def test_a_drained_server_finishes_what_it_has(obedient_repository: Path) -> None:
    with watched(obedient_repository) as watch:
        answers: list[object] = []
        asked = watch.ask(WAIT, answers)
        watch.wait_until_in_flight()
        assert not watch.supervisor.drain(timeout_s=0.5), "a request is in flight"
        assert not answers
        refused: list[object] = []
        watch.ask(WAIT, refused).join()
        assert refused == ["UNAVAILABLE"]
        gave_up = threading.Event()
        gave_up.set()
        assert not watch.supervisor.drain(give_up=gave_up)
        drained: list[bool] = []
        drain = threading.Thread(target=lambda: drained.append(watch.supervisor.drain()))
        drain.start()
        watch.release()
        asked.join()
        drain.join()
        assert answers == [{}] and drained == [True] and not watch.events


def test_the_service_heals_from_a_request_that_kills_a_stage_and_drains(pico_repository: Path, tmp_path: Path) -> None:
    """Poses whose shape has more bytes than memory: Triton takes them, and the stage's process dies of them."""
    events: list[str] = []
    with Supervisor(link_small_repository(pico_repository, tmp_path), on_event=events.append) as supervisor:
        poison = service_pb2.ModelInferRequest(model_name="diffsplat")
        poison.inputs.add(name="PROMPT", datatype="BYTES", shape=[1])
        poison.inputs.add(name="FRAME_POSES", datatype="FP32", shape=[2**62, 4])
        poison.raw_input_contents.extend([b"\x01\0\0\0a", b""])
        with grpc.insecure_channel(supervisor.server.grpc_url, options=[("grpc.enable_http_proxy", 0)]) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                list(GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([poison]), timeout=TIMEOUT_S))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, "a client must not wait for its timeout"
        wait_for(lambda: supervisor.restarts == 1)
        assert re.match(r"encode: process \d+ was killed by SIGABRT: restarting the server$", events[0])
        drained: list[bool] = []
        drain = threading.Thread(target=lambda: drained.append(supervisor.drain(TIMEOUT_S)))
        with Client(supervisor.server.grpc_url, timeout_s=TIMEOUT_S) as client:
            assert client.status().ready
            with client.stream("a red cube", steps=20) as stream:
                next(stream)
                drain.start()
                wait_for(supervisor.server.drain_file.exists)
                with pytest.raises(ServerUnavailableError, match="finishes its requests and takes no new ones"):
                    client.generate("a blue cube")
                assert isinstance(list(stream)[-1], Finished)
        drain.join()
        assert drained == [True] and len(events) == 2
