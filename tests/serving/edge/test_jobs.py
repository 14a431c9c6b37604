"""A request's way through a Triton that dies, restarts, refuses and stops on a script."""

import asyncio
import struct
from collections.abc import Coroutine
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from diffsplat.serving.drain import DRAINING
from diffsplat.serving.edge import jobs
from diffsplat.serving.edge.jobs import MAX_RUNS, Job
from diffsplat.serving.edge.outbox import MAX_MESSAGES, ByteBudget, Outbox
from tests.serving.edge.scripted import (
    PATIENCE_S,
    ScriptedUpstream,
    admitted,
    answer,
    failure,
    outputs,
    read,
    request,
    status,
    statuses,
)

QUEUED = answer(STATUS=status("queued"))
RESULT = answer(STATUS=status("finished"), GAUSSIANS=b"splats", ASSETS=b"file")


def step(number: int) -> bytes:
    return answer(STATUS=status("denoising", number))


def drive(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE_S))


class Followed:
    """A running job with one reader that keeps all it gets."""

    def __init__(self, upstream: ScriptedUpstream, inference: Any = None, **options: Any) -> None:
        self.job = Job(inference or admitted(), upstream, upstream, **options)
        self.upstream = upstream
        self.outbox = Outbox(ByteBudget(2**20))
        self.job.attach(self.outbox)
        self.task = asyncio.create_task(self.job.run())
        self.messages: list[bytes] = []

    async def until_sent(self) -> None:
        while not self.upstream.requests:
            await asyncio.sleep(0)

    async def read_all(self) -> list[bytes]:
        async for message in self.outbox:
            self.messages.append(message)
        await self.task
        return self.messages


def restart(upstream: ScriptedUpstream, run: int) -> Any:
    """Lets the server be there again."""

    async def wait() -> None:
        while upstream.run is not None:
            await asyncio.sleep(0)
        upstream.run = run

    return asyncio.create_task(wait())


def test_answers_carry_the_clients_id_and_triton_sees_another() -> None:
    async def work() -> None:
        upstream = ScriptedUpstream([step(1), RESULT])
        follow = Followed(upstream)
        messages = await follow.read_all()
        assert [read(message).infer_response.id for message in messages] == ["mine", "mine"]
        (asked,) = upstream.requests
        assert (
            len(asked.id) == 32 and asked.id == follow.job.request_id != Job(admitted(), upstream, upstream).request_id
        )
        assert follow.job.end_state == "finished" and not upstream.stopped

    drive(work())


def test_a_request_survives_its_server_without_a_step_back_and_without_a_copy() -> None:
    async def work() -> None:
        partial = answer(STATUS=status("denoising", 6), GAUSSIANS=b"splats")
        upstream = ScriptedUpstream(
            [QUEUED, step(4), partial, "dies"],
            [QUEUED, step(2), step(6), step(8), RESULT],
        )
        follow = Followed(upstream)
        restarted = restart(upstream, 1)
        messages = await follow.read_all()
        await restarted
        assert statuses(messages) == [
            ("queued", 0),
            ("denoising", 4),
            ("denoising", 6),
            ("denoising", 8),
            ("finished", 0),
        ]
        assert outputs(messages) == ["GAUSSIANS", "ASSETS"]
        first, second = upstream.requests
        assert first.id != second.id and upstream.stopped == [first.id], "the first may still run"
        second.id = first.id
        assert first == second, "the same object: the same seed and everything"
        assert follow.job.runs_begun == 2 and follow.job.end_state == "finished"

    drive(work())


def test_a_request_whose_stage_was_replaced_is_sent_again_though_the_first_sending_never_ends() -> None:
    async def work() -> None:
        replaced, never = asyncio.Event(), asyncio.Event()
        upstream = ScriptedUpstream([step(4), replaced.set, never, step(9)], [step(2), step(6), RESULT])
        follow = Followed(upstream)
        await replaced.wait()
        upstream.run = None  # while it is loaded, what is past the stage may still end
        await asyncio.sleep(0)
        assert not follow.task.done() and len(upstream.requests) == 1
        upstream.run = 1
        messages = await follow.read_all()
        assert statuses(messages) == [("denoising", 4), ("denoising", 6), ("finished", 0)]
        first, second = upstream.requests
        assert first.id != second.id == follow.job.request_id
        await upstream.a_stop.wait()
        assert upstream.stopped == [first.id] and follow.job.end_state == "finished"
        never.set()  # Triton may still answer the first: nobody gets it
        while not upstream.ended == 2:
            await asyncio.sleep(0)
        assert len(follow.messages) == 3

    drive(work())


def test_previews_that_were_shown_are_not_shown_again_after_a_restart() -> None:
    async def work() -> None:
        def shown(number: int) -> bytes:
            return answer(STATUS=status("denoising", number), PREVIEW=b"splats")

        upstream = ScriptedUpstream([QUEUED, shown(4), "dies"], [step(2), shown(4), step(6), shown(8), RESULT])
        follow = Followed(upstream)
        restarted = restart(upstream, 1)
        messages = await follow.read_all()
        await restarted
        assert [step for phase, step in statuses(messages) if phase == "denoising"] == [4, 6, 8]
        assert outputs(messages) == ["PREVIEW", "PREVIEW", "GAUSSIANS", "ASSETS"]

    drive(work())


def test_each_result_of_a_request_is_delivered_once() -> None:
    async def work() -> None:
        def result(index: int) -> bytes:
            message = pb.ModelStreamInferResponse.FromString(answer(GAUSSIANS=b"splats"))
            message.infer_response.outputs.add(name="INDEX_PACKAGE", datatype="INT32", shape=[1])
            message.infer_response.raw_output_contents.append(index.to_bytes(4, "little"))
            return message.SerializeToString()

        def step_of(index: int, number: int) -> bytes:
            return answer(STATUS=status("denoising", number, index=index, results=2))

        upstream = ScriptedUpstream(
            [step_of(0, 4), step_of(1, 2), result(1), "dies"],
            [step_of(0, 1), step_of(1, 3), step_of(0, 5), result(1), result(0)],
        )
        follow = Followed(upstream)
        restarted = restart(upstream, 1)
        messages = await follow.read_all()
        await restarted
        assert [step for _, step in statuses(messages)] == [4, 2, 3, 5]
        assert outputs(messages) == ["GAUSSIANS", "INDEX_PACKAGE"] * 2
        results = [message for message in messages if outputs([message])]
        indices = [read(message).infer_response.raw_output_contents[-1][0] for message in results]
        assert indices == [1, 0]

    drive(work())


@pytest.mark.parametrize(
    "fault",
    [
        failure("in ensemble 'diffsplat', Stub process 'decode_0_0' is not healthy."),
        failure(f"UNAVAILABLE: {DRAINING}: it finishes its requests and takes no new ones"),
        answer(STATUS=status("ended", end_state="failed", error_type="UNAVAILABLE", message="the engine was closed")),
    ],
    ids=["dead stage", "draining", "shut down"],
)
def test_faults_of_the_server_are_not_the_clients(fault: bytes) -> None:
    async def work() -> None:
        upstream = ScriptedUpstream([step(3), fault, lambda: setattr(upstream, "run", None)], [step(4), RESULT])
        follow = Followed(upstream)
        restarted = restart(upstream, 1)
        assert statuses(await follow.read_all()) == [("denoising", 3), ("denoising", 4), ("finished", 0)]
        await restarted

    drive(work())


def test_errors_of_the_request_end_it_at_once() -> None:
    async def work() -> None:
        upstream = ScriptedUpstream([failure("in ensemble 'diffsplat', INVALID_ARG: steps = 0: must be in 1 .. 200")])
        follow = Followed(upstream)
        (message,) = await follow.read_all()
        assert read(message).error_message.endswith("must be in 1 .. 200") and read(message).infer_response.id == "mine"
        assert follow.job.end_state == "failed" and "must be in" in follow.job.error

    drive(work())


def test_the_failure_of_a_stage_stops_the_denoiser() -> None:
    """Triton ends the stream, but not what the other stages work on."""

    async def work() -> None:
        upstream = ScriptedUpstream([step(1), failure("in ensemble 'diffsplat', INTERNAL: decode failed")])
        follow = Followed(upstream)
        await follow.read_all()
        assert upstream.stopped == [follow.job.request_id] and follow.job.end_state == "failed"

    drive(work())


def test_a_request_that_is_there_whenever_the_server_dies_is_given_up() -> None:
    async def work() -> None:
        upstream = ScriptedUpstream(*[["dies"]] * (MAX_RUNS + 1))
        follow = Followed(upstream)
        for run in range(1, MAX_RUNS):
            await restart(upstream, run)
        (message,) = await follow.read_all()
        assert read(message).error_message.startswith(f"UNAVAILABLE: the server failed {MAX_RUNS} times")
        assert len(upstream.requests) == MAX_RUNS

    drive(work())


def test_a_fault_that_nobody_heals_is_tried_on_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FAULT_PATIENCE_S", 0.0)

    async def work() -> None:
        upstream = ScriptedUpstream([failure("Stub process 'decode_0_0' is not healthy.")], [RESULT])
        assert outputs(await Followed(upstream).read_all()) == ["GAUSSIANS", "ASSETS"]

    drive(work())


def test_a_deadline_passes_while_the_server_is_away() -> None:
    async def work() -> None:
        message = request()
        message.inputs.add(name="DEADLINE_S", datatype="FP32", shape=[1])
        message.raw_input_contents.append(struct.pack("<f", 5.0))
        now_s = [100.0]
        upstream = ScriptedUpstream(["dies", "never sent"])
        follow = Followed(upstream, admitted(message), clock=lambda: now_s[0])
        while upstream.run is not None:
            await asyncio.sleep(0)
        now_s[0] += 5.0
        (answered,) = await follow.read_all()
        assert read(answered).error_message.startswith("DEADLINE_EXCEEDED: ") and follow.job.end_state == "expired"

    drive(work())


def test_a_reader_that_leaves_stops_its_request_which_is_read_to_its_end() -> None:
    async def work() -> None:
        upstream = ScriptedUpstream([])
        ended = answer(STATUS=status("ended", end_state="cancelled", error_type="CANCELLED", message="was cancelled"))
        upstream.scripts = [[step(1), upstream.a_stop, step(2), ended]]
        follow = Followed(upstream)
        await anext(follow.outbox)
        follow.job.detach(follow.outbox)
        follow.outbox.close()
        await follow.task
        assert set(upstream.stopped) == {follow.job.request_id} and upstream.ended == 1
        assert follow.job._stopping is not None and follow.job._stopping.done() and not follow.job._stopping.cancelled()
        assert follow.job.end_state == "cancelled"

    drive(work())


def test_a_stop_is_repeated_until_the_request_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes before its request is forgotten by the denoiser after a while."""
    monkeypatch.setattr(jobs, "STOP_AGAIN_S", 0.0)

    async def work() -> None:
        upstream, go = ScriptedUpstream([]), asyncio.Event()
        upstream.scripts = [[go, step(1)]]
        follow = Followed(upstream)
        await follow.until_sent()
        follow.job.stop()
        while len(upstream.stopped) < 3:
            await asyncio.sleep(0)
        go.set()
        await follow.read_all()

    drive(work())


def test_a_stopped_request_is_not_sent_again() -> None:
    async def work() -> None:
        upstream = ScriptedUpstream([])
        upstream.scripts = [[upstream.a_stop, "dies"]]
        follow = Followed(upstream)
        await follow.until_sent()
        follow.job.stop()
        (message,) = await follow.read_all()
        assert read(message).error_message == "CANCELLED: the request was cancelled"
        assert len(upstream.requests) == 1 and follow.job.end_state == "cancelled"

    drive(work())


def test_a_request_that_is_stopped_before_it_was_sent_never_is() -> None:
    async def work() -> None:
        upstream = ScriptedUpstream()
        upstream.run = None
        follow = Followed(upstream)
        follow.job.stop()
        (message,) = await follow.read_all()
        assert read(message).error_message.startswith("CANCELLED: ") and not upstream.requests

    drive(work())


def test_a_reader_that_does_not_read_stops_the_reading_of_triton() -> None:
    async def work() -> None:
        upstream = ScriptedUpstream([step(number) for number in range(1000)] + [RESULT])
        follow = Followed(upstream)
        for _ in range(5000):
            await asyncio.sleep(0)
        assert upstream.sent == MAX_MESSAGES + 1, "one is in hand"
        assert len(await follow.read_all()) == 1001

    drive(work())


def test_all_readers_of_a_client_share_its_bytes() -> None:
    async def work() -> None:
        budget = ByteBudget(100)
        first, second = Outbox(budget), Outbox(budget)
        await first.put(b"x" * 80)
        waiting = asyncio.create_task(second.put(b"y" * 30))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done() and budget.used == 80
        await anext(first)
        assert not waiting.done(), "the reader still holds it"
        first.close()
        await waiting
        assert budget.used == 30
        second.close()
        assert budget.used == 0
        await second.put(b"z" * 10)
        assert budget.used == 0, "a closed outbox keeps nothing"
        await Outbox(budget).put(b"l" * 1000)
        assert budget.used == 1000, "a single message may be larger"

    drive(work())


def test_an_answer_that_is_none_does_not_hang_the_client() -> None:
    async def work() -> None:
        follow = Followed(ScriptedUpstream([b"\xff\xff"]))
        (message,) = await follow.read_all()
        assert read(message).error_message.startswith("INTERNAL: the edge failed")

    drive(work())
