"""Requests that an edge keeps, and requests that are sent again, over a scripted transport."""

import numpy as np
import pytest
from diffsplat_client import (
    Client,
    Finished,
    GenerationRequest,
    InvalidRequestError,
    Progress,
    RequestNotFoundError,
    ServerUnavailableError,
)
from diffsplat_client.formats.ply import encode_ply
from diffsplat_client.retries import RetriedResponses, RetryPolicy
from diffsplat_client.runtime import BlockingRuntime, BlockingStream, run
from diffsplat_client.transport import TransportError

GONE = TransportError("UNAVAILABLE", "Socket closed")
AT_ONCE = RetryPolicy(retries=2, first_pause_s=0.0)
FAR = 1e12  # no time limit that a test reaches


def test_a_submitted_request_has_one_id_and_the_same_tensors(fakes) -> None:
    """Whatever depends on the moment would make it another request for the edge."""
    fake = fakes.transport(fakes.status("denoising", 1))
    client = Client(transport=fake)
    first, again = (client.submit("a red cube", steps=3, request_id="mine") for _ in range(2))
    assert first.id == again.id == "mine"
    (model, tensors, request_id, _), (_, tensors_again, id_again, _) = fake.calls
    assert model == "diffsplat" and request_id == id_again == "mine"
    assert tensors["STEPS"].tolist() == [3] and "DEADLINE_S" not in tensors
    assert tensors.keys() == tensors_again.keys()
    assert all(np.array_equal(tensors[name], tensors_again[name]) for name in tensors)
    assert fake.sent_parameters == [{"diffsplat_on_disconnect": "keep"}] * 2
    assert not fake.stopped, "the request goes on without its reader"
    assert client.submit("x").id != client.submit("x").id


def test_a_handle_attaches_for_events_and_result(fakes) -> None:
    fake = fakes.transport(fakes.status("denoising", 1), fakes.finished())
    handle = Client(transport=fake).submit("a red cube", steps=3)
    with handle.events() as events:
        progress, last = list(events)
    assert isinstance(progress, Progress) and isinstance(last, Finished)
    assert last.result.request.steps == 3 and last.result.request_id == handle.id
    assert len(handle.result().cloud) == 5
    assert fake.sent_parameters[1:] == [{"diffsplat_attach": True}] * 2
    assert [call[1] for call in fake.calls[1:]] == [{}, {}]
    with handle.events() as events:
        next(events)
    assert not fake.stopped


def test_a_handle_says_where_its_request_stands(fakes) -> None:
    fake = fakes.transport(fakes.status("denoising", 2), block=True)
    handle = Client(transport=fake).submit("x")
    status = handle.status()
    assert status is not None and (status.phase, status.step) == ("denoising", 2)
    assert fake.streams[-1].cancelled.is_set() and not fake.stopped
    fake.script = [TransportError("DEADLINE_EXCEEDED", "")]
    assert handle.status() is None
    fake.script = [fakes.status("ended", end_state="cancelled", error_type="CANCELLED", message="stopped")]
    ended = handle.status()
    assert ended is not None and ended.early_end is not None and ended.early_end.state == "cancelled"


def test_cancel_is_a_stop_under_its_id(fakes) -> None:
    fake = fakes.transport(fakes.status("denoising", 2))
    handle = Client(transport=fake).submit("x")
    fake.stop_answer = "already_finished"
    assert handle.cancel() == "already_finished"
    assert fake.stopped == [handle.id]


def test_a_request_that_nobody_knows_is_not_found(fakes) -> None:
    fake = fakes.transport(TransportError("NOT_FOUND", "no request of this id is running", by_stage=True))
    with pytest.raises(RequestNotFoundError, match="no request of this id") as caught:
        Client(transport=fake).attach("mine")
    assert caught.value.error_type == "NOT_FOUND"


def test_attach_reads_results_without_knowing_the_request(fakes) -> None:
    last = fakes.finished(FRAMES=np.zeros((2, 8, 8, 3), np.uint8))
    cloud = Client(transport=fakes.transport(fakes.finished())).generate("x").cloud
    last |= fakes.files(ply=encode_ply(cloud))
    del last["GAUSSIANS"]
    client = Client(transport=fakes.transport(last))
    result = client.attach("mine").result()
    assert result.assets == {"ply": encode_ply(cloud)} and result.request.formats == ("ply",)
    assert result.frames is not None and result.frames.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(result.cloud.positions, cloud.positions)
    request = GenerationRequest("a red cube", formats=("ply",))
    assert client.attach("mine", request).result().request == request


def test_triton_without_an_edge_is_named(fakes) -> None:
    fake = fakes.transport(fakes.finished())
    fake.edge = False
    for call in (lambda client: client.submit("x"), lambda client: client.attach("mine")):
        with pytest.raises(ServerUnavailableError, match="host:1 keeps no requests: it is Triton without an edge"):
            call(Client("host:1", transport=fake))
    assert not fake.calls


class Attempts:
    """Every attempt takes the next script."""

    def __init__(self, fakes, *scripts: list) -> None:
        self.fakes, self.scripts, self.sent = fakes, list(scripts), 0

    def __call__(self, left_s: float):
        assert left_s > 0
        self.sent += 1
        return BlockingStream(self.fakes.transport(*self.scripts[self.sent - 1]).stream("diffsplat", {}, "id", left_s))


def retried(send: Attempts, ends_at: float, policy: RetryPolicy) -> RetriedResponses:
    return RetriedResponses(send, ends_at, policy, BlockingRuntime().pause())


def read_all(responses: RetriedResponses) -> list:
    return list(iter(lambda: run(responses.read()), None))


def test_a_request_is_sent_again_while_nothing_is_answered(fakes) -> None:
    attempts = Attempts(fakes, [GONE], [GONE], [{}, {}])
    assert read_all(retried(attempts, FAR, AT_ONCE)) == [{}, {}]
    assert attempts.sent == 3


@pytest.mark.parametrize(
    "scripts",
    [[[{}, GONE]], [[TransportError("INTERNAL", "decode failed")]], [[TransportError("INVALID_ARGUMENT", "eta")]]],
    ids=["answered", "a failure", "a refusal"],
)
def test_nothing_else_is_sent_again(fakes, scripts) -> None:
    attempts = Attempts(fakes, *scripts)
    with pytest.raises(TransportError):
        read_all(retried(attempts, FAR, AT_ONCE))
    assert attempts.sent == 1


def test_attempts_and_time_are_bounded(fakes, clock) -> None:
    attempts = Attempts(fakes, *[[GONE]] * 9)
    with pytest.raises(TransportError, match="Socket closed"):
        read_all(retried(attempts, FAR, AT_ONCE))
    assert attempts.sent == 3
    attempts = Attempts(fakes, *[[GONE]] * 9)
    with pytest.raises(TransportError, match="Socket closed"):
        read_all(retried(attempts, clock[0] + 5, RetryPolicy(retries=8, first_pause_s=60, longest_pause_s=60)))
    assert attempts.sent == 1, "the pause would outlast the call"


class Waiting:
    """A pause that passes at once on the test's clock, and says how long it was."""

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.pauses = clock, []

    async def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.clock[0] += seconds
        return False

    def cut(self) -> None:
        pass


def overloaded(retry_after_s: float) -> TransportError:
    return TransportError("UNAVAILABLE", "64 wait", True, error_type="OVERLOADED", retry_after_s=retry_after_s)


def test_the_server_s_word_on_when_to_come_back_counts(fakes, clock) -> None:
    waiting, began = Waiting(clock), clock[0]
    attempts = Attempts(fakes, [overloaded(20.0)], [overloaded(4.0)], [{}])
    limits: list[float] = []

    def send(left_s: float):
        limits.append(left_s)
        return attempts(left_s)

    assert read_all(RetriedResponses(send, began + 100, RetryPolicy(), waiting)) == [{}]
    first, second = waiting.pauses
    assert 20 <= first <= 25 and 4 <= second <= 5
    assert limits == pytest.approx([100, 100 - first, 100 - first - second]), (
        "the caller's deadline holds for all attempts"
    )


def test_a_server_that_has_no_room_before_the_deadline_is_not_waited_for(fakes, clock) -> None:
    waiting = Waiting(clock)
    attempts = Attempts(fakes, [overloaded(20.0)], [{}])
    with pytest.raises(TransportError, match="64 wait"):
        read_all(RetriedResponses(attempts, clock[0] + 19, RetryPolicy(), waiting))
    assert attempts.sent == 1 and waiting.pauses == []


def test_a_server_that_says_now_is_not_asked_at_once() -> None:
    """Else all clients would come back together."""
    assert RetryPolicy(first_pause_s=1.0).pause_s(1, retry_after_s=0.0) >= 0.5


def test_each_attempt_tells_the_server_what_time_is_left(fakes, clock, monkeypatch) -> None:
    fake = fakes.transport(GONE)
    client = Client(transport=fake)
    monkeypatch.setattr(client._runtime, "pause", lambda: Waiting(clock))
    with pytest.raises(ServerUnavailableError):
        client.generate("x", timeout_s=50)
    sent = [tensors["DEADLINE_S"].item() for _, tensors, _, _ in fake.calls]
    assert sent[0] == 50 and sent == sorted(sent, reverse=True) and len(set(sent)) == 3
    assert [limit for *_, limit in fake.calls] == pytest.approx(sent)


def test_a_cancelled_request_is_not_sent_again(fakes) -> None:
    responses = retried(Attempts(fakes, [GONE]), FAR, RetryPolicy(first_pause_s=1e6, longest_pause_s=1e6))
    responses.cancel()
    with pytest.raises(TransportError, match="CANCELLED"):
        run(responses.read())


def test_pauses_grow_up_to_a_limit() -> None:
    policy = RetryPolicy(9, first_pause_s=1.0, longest_pause_s=4.0)
    for attempt, longest in ((1, 1), (2, 2), (3, 4), (9, 4)):
        assert longest / 2 <= policy.pause_s(attempt) <= longest


@pytest.mark.parametrize("retries", [-1, 101, 1.5, True, "2"])
def test_wrong_numbers_of_retries_are_named(retries) -> None:
    with pytest.raises(InvalidRequestError, match="retries = "):
        Client(retries=retries)
