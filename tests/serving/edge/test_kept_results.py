"""Ids that last: a request is computed once, however often it is sent, and its result outlives its reader."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from diffsplat.serving.edge.admission import Inference, RefusedError
from diffsplat.serving.edge.clients import ClientLimits, Clients
from diffsplat.serving.edge.dispatch import Dispatcher
from diffsplat.serving.edge.request_log import RequestLog
from diffsplat.serving.edge.results_store import KeepPolicy, Recording, ResultStore
from tests.serving.edge.scripted import (
    PATIENCE_S,
    ScriptedUpstream,
    admitted,
    answer,
    failure,
    outputs,
    request,
    status,
    statuses,
)

RESULT = answer(STATUS=status("finished"), ASSETS=b"file" * 1000)


def step(number: int) -> bytes:
    return answer(STATUS=status("denoising", number))


def lasting(on_disconnect: str = "keep", request_id: str = "mine", **tensors: bytes) -> Inference:
    message = request(request_id, **tensors)
    message.parameters["diffsplat_on_disconnect"].string_param = on_disconnect
    return admitted(message)


def attaching(request_id: str = "mine") -> Inference:
    message = request(request_id)
    del message.inputs[:], message.raw_input_contents[:]
    message.parameters["diffsplat_attach"].bool_param = True
    return admitted(message)


class Desk:
    """A dispatcher in front of a scripted Triton, with one client."""

    def __init__(self, *scripts: list[object], **keep: Any) -> None:
        self.upstream = ScriptedUpstream(*scripts)
        self.clients = Clients(ClientLimits())
        self.store = ResultStore(KeepPolicy(**keep))
        self.dispatcher = Dispatcher(self.upstream, self.upstream, self.clients, self.store, (RequestLog(None),))
        self.client = self.clients.get("me")

    async def read_all(self, inference: Inference) -> list[bytes]:
        answers = self.dispatcher.ask(self.client, inference)
        messages = [message async for message in answers]
        answers.leave()
        return messages

    async def read_first(self, inference: Inference) -> bytes:
        """The first message; then the reader leaves."""
        answers = self.dispatcher.ask(self.client, inference)
        message = await anext(aiter(answers))
        answers.leave()
        return message

    async def until_idle(self) -> None:
        while self.clients.busy:
            await asyncio.sleep(0.001)


def drive(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE_S))


def test_a_kept_request_goes_on_without_its_reader_and_its_result_stays() -> None:
    async def work() -> None:
        go = asyncio.Event()
        desk = Desk([step(1), go, step(2), RESULT])
        await desk.read_first(lasting())
        go.set()
        await desk.until_idle()
        for inference in (lasting(), attaching(), lasting()):
            assert outputs(await desk.read_all(inference)) == ["ASSETS"]
        assert len(desk.upstream.requests) == 1 and not desk.upstream.stopped
        desk.store.close()

    drive(work())


def test_previews_are_passed_on_and_not_kept() -> None:
    async def work() -> None:
        go = asyncio.Event()
        desk = Desk([step(1), answer(STATUS=status("denoising", 2), PREVIEW=b"splats"), go, RESULT])
        watching = asyncio.create_task(desk.read_all(lasting()))
        while desk.upstream.sent < 2:
            await asyncio.sleep(0.001)
        go.set()
        assert outputs(await watching) == ["PREVIEW", "ASSETS"]
        assert outputs(await desk.read_all(lasting())) == ["ASSETS"]
        desk.store.close()

    drive(work())


def test_the_same_id_attaches_to_the_running_request() -> None:
    """Whoever comes late gets the newest progress first, and everybody the result once."""

    async def work() -> None:
        go = asyncio.Event()
        desk = Desk([step(1), step(2), step(3), go, step(4), RESULT])
        first = asyncio.create_task(desk.read_all(lasting()))
        while desk.upstream.sent < 3:
            await asyncio.sleep(0.001)
        late = desk.dispatcher.ask(desk.client, attaching())
        assert statuses([await anext(aiter(late))]) == [("denoising", 3)]
        go.set()
        rest = [message async for message in late]
        late.leave()
        assert outputs(rest) == outputs(await first) == ["ASSETS"] and len(desk.upstream.requests) == 1
        desk.store.close()

    drive(work())


def test_a_lasting_request_that_cancels_is_stopped_when_its_last_reader_leaves() -> None:
    async def work() -> None:
        desk = Desk([])
        ended = answer(STATUS=status("ended", end_state="cancelled", error_type="CANCELLED", message="was cancelled"))
        desk.upstream.scripts = [[step(1), desk.upstream.a_stop, ended], [RESULT]]
        answers = desk.dispatcher.ask(desk.client, lasting("cancel"))
        await anext(aiter(answers))
        await desk.read_first(lasting("cancel"))  # another reader came and went
        assert not desk.upstream.stopped
        answers.leave()
        await desk.until_idle()
        assert desk.upstream.stopped
        assert outputs(await desk.read_all(lasting("cancel"))) == ["ASSETS"], "what did not finish is computed anew"
        desk.store.close()

    drive(work())


def test_what_failed_is_not_kept() -> None:
    async def work() -> None:
        desk = Desk([failure("UNAVAILABLE: 64 requests are already waiting: try again later")], [RESULT])
        (refused,) = await desk.read_all(lasting())
        assert b"already waiting" in refused
        await desk.until_idle()
        assert outputs(await desk.read_all(lasting())) == ["ASSETS"]
        desk.store.close()

    drive(work())


def test_ids_belong_to_one_request_of_one_client() -> None:
    async def work() -> None:
        desk = Desk([RESULT], [RESULT])
        await desk.read_all(lasting())
        await desk.until_idle()
        with pytest.raises(RefusedError, match="another request has this id already"):
            desk.dispatcher.ask(desk.client, lasting(PROMPT=b"a blue cone"))
        with pytest.raises(RefusedError, match="no request of this id") as unknown:
            desk.dispatcher.ask(desk.client, attaching("other"))
        assert unknown.value.code == "NOT_FOUND" and unknown.value.head.id == "other"
        with pytest.raises(RefusedError, match="no request of this id"):
            desk.dispatcher.ask(desk.clients.get("somebody else"), attaching())
        desk.store.close()

    drive(work())


def test_results_go_after_their_time() -> None:
    async def work() -> None:
        desk = Desk([RESULT], keep_s=0.0)
        assert outputs(await desk.read_all(lasting())) == ["ASSETS"]
        await desk.until_idle()
        while desk.store.find(("me", "mine")) is not None:
            await asyncio.sleep(0.001)

    drive(work())


@pytest.mark.parametrize(
    "limit", [{"max_bytes": 2 * len(RESULT) + 100}, {"max_results": 2}], ids=lambda limit: next(iter(limit))
)
def test_the_oldest_results_make_room(limit: dict[str, int]) -> None:
    async def work() -> None:
        desk = Desk([RESULT], [RESULT], [RESULT], **limit)
        for request_id in "abc":
            await desk.read_all(lasting(request_id=request_id))
            await desk.until_idle()
        assert [desk.store.find(("me", request_id)) is not None for request_id in "abc"] == [False, True, True]
        desk.store.close()

    drive(work())


def test_a_result_that_makes_room_is_still_read_to_its_end() -> None:
    async def work() -> None:
        store = ResultStore(KeepPolicy(max_results=0))
        recording = store.begin(("me", "mine"), b"")
        await recording.put(RESULT, passing=False)
        await recording.put(RESULT, passing=False)
        recording.end("finished")
        recording.enter()
        messages = recording.read()
        assert await anext(messages) == RESULT
        store.end(("me", "mine"))
        assert store.find(("me", "mine")) is None
        assert [message async for message in messages] == [RESULT] and not recording._file.closed
        recording.leave()
        assert recording._file.closed

    drive(work())


def test_large_messages_come_back_as_they_were() -> None:
    async def work() -> None:
        store = ResultStore(KeepPolicy())
        recording: Recording = store.begin(("me", "mine"), b"")
        large = [bytes([number]) * 3_000_000 for number in range(3)]
        for message in large:
            await recording.put(message, passing=False)
        recording.end("finished")
        assert [message async for message in recording.read()] == large and recording.size == 9_000_000
        store.close()

    drive(work())
