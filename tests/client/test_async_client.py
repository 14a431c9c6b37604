"""AsyncClient over a real socket, against a server that misbehaves on demand, and over scripted transports."""

import asyncio
import contextlib
import gc
import os
import threading

import numpy as np
import pytest
from diffsplat_client import (
    AsyncClient,
    AsyncGenerationStream,
    DiffSplatError,
    Finished,
    InvalidRequestError,
    Progress,
    Queued,
    RequestCancelledError,
    RequestTimeoutError,
    ServerError,
    ServerUnavailableError,
)
from diffsplat_client.contract import CONTRACT_VERSION, STOP_ANSWERS
from diffsplat_client.grpc_aio_transport import GrpcAioTransport
from diffsplat_client.runtime import BlockingTransport
from diffsplat_client.transport import TransportError

from tests.client.protocol_server import HANGS_S


def client_of(server) -> AsyncClient:
    return AsyncClient(server.url, timeout_s=2 * HANGS_S)


def over(fake) -> AsyncClient:
    return AsyncClient("host:1", transport=BlockingTransport(fake))


async def happens(event: threading.Event) -> bool:
    return await asyncio.to_thread(event.wait, HANGS_S)


async def half_read(client: AsyncClient, server) -> AsyncGenerationStream:
    """A stream of a request that hangs after its first event."""
    server.hanging.clear()
    events = client.stream("hangs")
    await anext(events)
    assert await happens(server.hanging)
    return events


async def only_this_task() -> None:
    """Wait for what still cleans up; a task that never ends fails the test by its time limit."""
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.01)


def test_a_generation_crosses_the_wire(server) -> None:
    async def main() -> None:
        async with client_of(server) as client:
            stream = client.stream("ü 🟥", seed=5)
            assert not server.requests, "sent when the block is entered"
            async with stream as events:
                progress, last = [event async for event in events]
            assert isinstance(progress, Progress) and isinstance(last, Finished)
            assert len(last.result.cloud) == 500_000  # 28 MB: more than gRPC's own limit of 4
            assert stream.request_id == last.result.request_id == server.requests[0].id
            assert (await anext(client.stream("without a block"))).step == 1
        await only_this_task()

    asyncio.run(main())


def test_events_and_results_are_those_of_the_twin(fakes) -> None:
    script = [fakes.status("queued", queue_position=2), fakes.status("denoising", 1), fakes.finished()]

    async def main() -> None:
        async with over(fakes.transport(*script)) as client:
            queued, progress, last = [event async for event in client.stream("x")]
            assert isinstance(queued, Queued) and isinstance(progress, Progress) and isinstance(last, Finished)
            np.testing.assert_array_equal((await client.generate("x")).cloud.to_array(), last.result.cloud.to_array())
            handle = await client.submit("x", request_id="mine")
            assert (await handle.status()).phase == "queued"
            assert (await (await client.attach("mine")).result()).request.prompt == ""
            async with handle.events() as events:
                assert isinstance(await anext(events), Queued)
            assert (await client.status()).contract_version == CONTRACT_VERSION
            assert client.server_parameters["bundle"] == "pico"

    asyncio.run(main())


def test_many_generations_share_one_channel(server) -> None:
    async def main() -> list[str]:
        async with client_of(server) as client:
            results = await asyncio.gather(*(client.generate(f"small {number}") for number in range(20)))
        await only_this_task()
        return [result.request.prompt for result in results]

    assert asyncio.run(main()) == [f"small {number}" for number in range(20)]
    assert len({request.id for request in server.requests}) == 20 and len(server.peers) == 1


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("invalid", InvalidRequestError),
        ("refused", InvalidRequestError),
        ("fails", ServerError),
        ("stopped", RequestCancelledError),
        ("full", ServerUnavailableError),
        ("short", ServerError),
    ],
)
def test_errors_are_those_of_the_twin(server, prompt: str, expected: type[DiffSplatError]) -> None:
    async def main() -> None:
        async with client_of(server) as client:
            with pytest.raises(expected):
                await client.generate(prompt)
            assert len((await client.generate("and works on")).cloud) == 500_000

    asyncio.run(main())


def test_bad_options_are_refused_at_the_call(fakes) -> None:
    async def main() -> None:
        with pytest.raises(InvalidRequestError, match="steps = 0"):
            over(fakes.transport()).stream("x", steps=0)

    asyncio.run(main())


class TestStopping:
    def test_cancelling_the_task_stops_the_request(self, server) -> None:
        async def main() -> None:
            async with client_of(server) as client:
                events = await half_read(client, server)
                task = asyncio.ensure_future(anext(events))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert server.stopped.is_set(), "the STOP was answered before the task ended"
                assert await happens(server.ended)
                assert [event async for event in events] == []
            await only_this_task()

        asyncio.run(main())
        assert server.requests[1].id == server.requests[0].id

    def test_a_second_cancellation_does_not_lose_the_stop(self, fakes) -> None:
        """The server is slow to answer the STOP; whoever waits for the task need not wait for it."""
        fake = fakes.transport(fakes.status("denoising", 1))
        asked, may_answer = asyncio.Event(), asyncio.Event()

        class Slow(BlockingTransport):
            async def versions(self, model: str, timeout_s: float) -> list[str]:
                asked.set()
                await may_answer.wait()
                return await super().versions(model, timeout_s)

        class Hanging:
            async def read(self) -> None:
                await asyncio.Event().wait()

            def cancel(self) -> None:
                pass

        async def main() -> None:
            client = AsyncClient("host:1", transport=Slow(fake))
            events = client.stream("x")
            await anext(events)
            events._reader._responses = Hanging()
            task = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
            task.cancel()
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not fake.stopped
            may_answer.set()
            await client.close()
            assert fake.stopped == [fake.request_id]
            await only_this_task()

        asyncio.run(main())

    def test_the_timeout_of_asyncio_and_that_of_the_client(self, server) -> None:
        async def main() -> None:
            async with client_of(server) as client:
                events = await half_read(client, server)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(events), 0.05)
                assert server.stopped.is_set()
                server.ended.clear()
                for timeout_s in (0.5, 4.0, 32.0):  # until it suffices to send the request on a busy machine
                    sent = len(server.requests)
                    with pytest.raises(RequestTimeoutError):
                        await client.generate("hangs", timeout_s=timeout_s)
                    if len(server.requests) > sent:
                        break
                assert server.requests[-1].model_name == "denoise", "a STOP"
            await only_this_task()

        asyncio.run(main())

    def test_another_task_frees_a_waiting_reader(self, server) -> None:
        """With an error of ours: CancelledError would mean that the reader's own task was cancelled."""

        async def main() -> None:
            async with client_of(server) as client:
                for close in ("stream", "client"):
                    server.ended.clear()
                    events = await half_read(client, server)
                    task = asyncio.ensure_future(anext(events))
                    await asyncio.sleep(0)
                    await (events if close == "stream" else client).close()
                    with pytest.raises(RequestCancelledError):
                        await task
                    assert await happens(server.ended)

        asyncio.run(main())

    def test_closing_while_it_is_sent(self, fakes) -> None:
        fake, asked, may_answer = fakes.transport(fakes.finished()), asyncio.Event(), asyncio.Event()

        class Slow(BlockingTransport):
            async def model_ready(self, model: str, timeout_s: float) -> bool:
                asked.set()
                await may_answer.wait()
                return await super().model_ready(model, timeout_s)

        async def main() -> None:
            events = AsyncClient("host:1", transport=Slow(fake)).stream("x")
            task = asyncio.ensure_future(anext(events))
            await asked.wait()
            await events.close()
            may_answer.set()
            with pytest.raises(RequestCancelledError):
                await task
            assert all(stream.cancelled.is_set() for stream in fake.streams)

        asyncio.run(main())

    @pytest.mark.parametrize("answer", STOP_ANSWERS)
    def test_stop_returns_what_the_server_says(self, fakes, answer: str) -> None:
        fake = fakes.transport(fakes.status("denoising", 1), fakes.status("denoising", 2))
        fake.stop_answer = answer

        async def main() -> None:
            client = over(fake)
            events = client.stream("x")
            assert await events.stop() == "already_finished", "it was never sent"
            events = client.stream("x")
            await anext(events)
            assert await client.stop(events.request_id) == answer
            assert await events.stop() == answer
            assert await events.stop() == "already_finished"
            handle = await client.submit("x")
            assert await handle.cancel() == answer
            fake.stop_error = TransportError("UNAVAILABLE", "gone")
            for stop in (client.stop("id"), handle.cancel()):
                with pytest.raises(ServerUnavailableError, match="gone"):
                    await stop

        asyncio.run(main())

    def test_forgetting_a_half_read_stream(self, server) -> None:
        async def main() -> None:
            async with client_of(server) as client:
                await half_read(client, server)
                gc.collect()
                assert await happens(server.stopped) and await happens(server.ended)
                await only_this_task()

        asyncio.run(main())

    def test_a_cancelled_reconstruction_ends_its_call(self, fakes) -> None:
        class Responses:
            cancelled = False

            async def read(self) -> None:
                await asyncio.Event().wait()

            def cancel(self) -> None:
                self.cancelled = True

        responses = Responses()

        class Silent(BlockingTransport):
            def stream(self, *_: object, **__: object) -> Responses:
                return responses

        fake = fakes.transport()
        fake.config = {**fake.config, "reconstruction": "yes"}
        images, poses = np.zeros((4, 16, 16, 3), np.uint8), np.tile(np.eye(4), (4, 1, 1))
        poses[:, 2, 3] = 1.4

        async def main() -> None:
            client = AsyncClient("host:1", transport=Silent(fake))
            task = asyncio.ensure_future(client.reconstruct(images, poses))
            for _ in range(10):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert responses.cancelled

        asyncio.run(main())


class TestEventLoops:
    def test_several_loops_one_after_another(self, server) -> None:
        client = client_of(server)
        for _ in range(3):
            assert len(asyncio.run(client.generate("x")).cloud) == 500_000
        asyncio.run(client.close())

    def test_a_loop_that_ends_with_a_request_in_flight(self, server) -> None:
        """What asyncio.run cancels is stopped."""
        client = client_of(server)
        tasks = []

        async def main() -> None:
            events = await half_read(client, server)
            tasks.append(asyncio.ensure_future(anext(events)))
            await asyncio.sleep(0)

        asyncio.run(main())
        assert tasks[0].cancelled() and server.stopped.is_set()
        assert server.ended.wait(HANGS_S)
        assert len(asyncio.run(client.generate("x")).cloud) == 500_000, "in the next loop it works on"

    def test_a_loop_that_is_closed_under_a_half_read_stream(self, server) -> None:
        """Nobody can send a STOP any more; the connection goes with the stream, and the server sees its client gone."""
        client, loop = client_of(server), asyncio.new_event_loop()

        events = loop.run_until_complete(half_read(client, server))
        loop.close()
        del events
        gc.collect()
        assert len(asyncio.run(client.generate("x")).cloud) == 500_000
        gc.collect()
        assert server.ended.wait(HANGS_S)

    def test_outside_a_loop_it_says_what_to_do(self, fakes) -> None:
        client = over(fakes.transport(fakes.finished()))  # may be made anywhere
        with contextlib.closing(client.generate("x")) as work, pytest.raises(RuntimeError, match="asyncio.run"):
            work.send(None)  # as a loop of another library does
        with pytest.raises(RuntimeError, match="AsyncClient needs a running asyncio event loop"):
            client.stream("x")

    def test_two_loops_at_a_time_are_refused(self, server) -> None:
        client = client_of(server)

        async def main() -> None:
            await client.generate("x")
            with pytest.raises(RuntimeError, match="in use by the event loop of another thread"):
                await asyncio.to_thread(asyncio.run, client.generate("x"))
            await client.generate("x")

        asyncio.run(main())


def test_a_forked_child_is_refused(server, monkeypatch: pytest.MonkeyPatch) -> None:
    """In it grpc.aio would hang. Not tried here: gRPC may crash in such a child before it gets that far."""
    client = client_of(server)
    asyncio.run(client.generate("small"))
    monkeypatch.setattr(GrpcAioTransport, "_process", os.getpid() + 1)
    for used in (client, client_of(server)):
        with pytest.raises(ServerUnavailableError, match="forked from one that had used AsyncClient"):
            asyncio.run(used.generate("small"))


def test_a_server_that_dies_is_noticed(server) -> None:
    async def main() -> None:
        async with client_of(server) as client:
            events = await half_read(client, server)
            task = asyncio.ensure_future(anext(events))
            await asyncio.to_thread(lambda: server.server.stop(0).wait(HANGS_S))
            with pytest.raises(ServerUnavailableError, match="went away"):
                await task
            with pytest.raises(ServerUnavailableError, match="no server answers"):
                await client.generate("x")
        await only_this_task()

    asyncio.run(main())


def test_tasks_share_a_stream(fakes) -> None:
    """Each event goes to one of them, and all see the end."""
    script = [fakes.status("denoising", step) for step in range(50)]

    async def read(events) -> list:
        found = []
        async for event in events:
            found.append(event)
            await asyncio.sleep(0)
        return found

    async def main() -> None:
        events = over(fakes.transport(*script, fakes.finished())).stream("x")
        parts = await asyncio.gather(*(read(events) for _ in range(4)))
        steps = [event.step for part in parts for event in part if isinstance(event, Progress)]
        assert sorted(steps) == list(range(50))
        assert sum(isinstance(event, Finished) for part in parts for event in part) == 1

    asyncio.run(main())
