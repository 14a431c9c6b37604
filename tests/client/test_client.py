"""The client over a scripted transport: events, results, typed errors, deadlines, stopping abandoned requests."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from diffsplat_client import (
    CONTRACT_VERSION,
    Client,
    ContractMismatchError,
    DiffSplatError,
    Finished,
    GenerationRequest,
    InvalidRequestError,
    Preview,
    Progress,
    Queued,
    RequestCancelledError,
    RequestTimeoutError,
    ServerError,
    ServerUnavailableError,
    SplatCloud,
    four_views,
)
from diffsplat_client.contract import STOP_ANSWERS
from diffsplat_client.error_text import StageError
from diffsplat_client.formats.ply import encode_ply
from diffsplat_client.formats.splat import encode_splat
from diffsplat_client.session import RECHECK_S
from diffsplat_client.transport import TransportError

from tests.stream_closing import when_read


def test_a_generation_from_first_event_to_result(fakes) -> None:
    fake = fakes.transport(
        fakes.status("queued", queue_position=2, seconds_to_start=1.5, seconds_left=4),
        fakes.status("denoising", 1, seconds_left=0.5, warnings=["prompt cut"]),
        fakes.finished(),
    )
    client = Client("host:1", transport=fake)
    assert fake.questions == 0  # nothing is sent before the first request
    with client.stream("a red cube", steps=3) as events:
        queued, progress, last = list(events)
    assert queued == Queued(position=2, seed=7, seconds_to_start=1.5, seconds_left=4.0)
    assert progress == Progress(1, 3, 0.5, seed=7, elevation_deg=10.0, warnings=("prompt cut",))
    assert isinstance(last, Finished)
    result = last.result
    np.testing.assert_array_equal(result.cloud.to_array(), fakes.splats())
    assert result.seed == 7 and result.elevation_deg == 10.0 and result.warnings == ("prompt cut",)
    assert result.frames is None and result.assets == {}
    total = result.timings_ms.pop("total")
    assert total >= 0
    assert result.timings_ms == {"encode": 1.5, "denoise": 30.0, "decode": 4.0, "package": 0.5}
    assert client.server_parameters["bundle"] == "pico"
    ((model, tensors, request_id, timeout_s),) = fake.calls  # no STOP for what has finished
    assert model == "diffsplat" and tensors["PROMPT"][0] == b"a red cube" and tensors["STEPS"].tolist() == [3]
    assert re.fullmatch("[0-9a-f]{32}", request_id) and result.request_id == request_id
    assert 0 < timeout_s <= 600
    assert not fake.streams[0].cancelled.is_set()  # nothing to cancel either: the server has closed it


def test_generate_takes_a_prompt_or_a_request_and_ids_differ(fakes, clock) -> None:
    fake = fakes.transport(fakes.finished())
    client = Client(transport=fake)
    request = GenerationRequest("x", steps=4)
    assert client.generate(request, steps=9).request.steps == 9
    assert client.generate("x", steps=9).seed == 7
    assert len({request_id for _, _, request_id, _ in fake.calls}) == 2
    assert fake.questions == 1  # readiness and contract, for requests that follow each other at once
    with pytest.raises(TypeError, match="step_count"):
        client.generate("x", step_count=9)


def test_frames_and_assets_come_along(fakes) -> None:
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    fake = fakes.transport(fakes.finished(FRAMES=frames))
    result = Client(transport=fake).generate("x", frame_poses=four_views(), frame_size=16)
    assert result.frames is not None and result.frames.shape == (4, 16, 16, 3)
    last = fakes.finished()
    cloud = Client(transport=fakes.transport(fakes.finished())).generate("x").cloud
    last |= fakes.files(ply=encode_ply(cloud))
    del last["GAUSSIANS"]  # the file comes in its place
    result = Client(transport=fakes.transport(last)).generate("x", formats=("ply",))
    assert result.assets == {"ply": encode_ply(cloud)}
    np.testing.assert_allclose(result.cloud.positions, cloud.positions)


def test_results_may_come_with_any_message(fakes) -> None:
    """An ensemble pairs the outputs of its stages by their order of arrival, and instances overtake each other."""
    last = fakes.finished()
    early = {
        **fakes.status("denoising", 3),
        "GAUSSIANS": last.pop("GAUSSIANS"),
        "TIMINGS_PACKAGE": last.pop("TIMINGS_PACKAGE"),
    }
    generation = Client(transport=fakes.transport(fakes.status("denoising", 1), early, last)).generate("a red cube")
    assert len(generation.cloud) == len(early["GAUSSIANS"])
    assert generation.timings_ms["package"] == 0.5 and generation.timings_ms["decode"] == 4


@pytest.mark.parametrize(
    ("code", "message", "expected", "says"),
    [
        ("INVALID_ARGUMENT", "in ensemble 'diffsplat', eta = 2: must be", InvalidRequestError, "^eta = 2: must be$"),
        ("UNAVAILABLE", "Socket closed", ServerUnavailableError, r"host:1 went away.*\(Socket closed\)"),
        ("CANCELLED", "", RequestCancelledError, "stopped"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", RequestTimeoutError, "timeout_s = 600"),
        ("INTERNAL", "decode failed\nmore", ServerError, r"\(INTERNAL: decode failed\)"),
        ("UNKNOWN", "", ServerError, "UNKNOWN"),
    ],
)
@pytest.mark.parametrize("progress_first", [False, True])
def test_errors_are_typed(fakes, code, message, expected, says, progress_first) -> None:
    script = [fakes.status("denoising", 1)] * progress_first
    fake = fakes.transport(*script, TransportError(code, message))
    with pytest.raises(expected, match=says) as caught:
        Client("host:1", transport=fake).generate("x")
    assert isinstance(caught.value, DiffSplatError) and caught.value.__cause__ is None
    # a failed stage does not end the denoiser; a dead server, a refused or a stopped request need no STOP
    assert bool(fake.stopped) == (expected in (RequestTimeoutError, ServerError))


@pytest.mark.parametrize(
    ("state", "error_type", "message", "expected", "says"),
    [
        ("cancelled", "CANCELLED", "the request was cancelled", RequestCancelledError, "stopped"),
        ("expired", "DEADLINE_EXCEEDED", "deadline_s passed", RequestTimeoutError, "timeout_s = 600"),
        ("failed", "INTERNAL", "denoise failed", ServerError, r"\(INTERNAL: denoise failed\)"),
        ("failed", "INVALID_ARG", "eta = 2: must be", InvalidRequestError, "^eta = 2: must be$"),
        ("failed", "UNAVAILABLE", "the server is shutting down", ServerUnavailableError, "shutting down"),
    ],
)
def test_an_early_end_is_a_typed_error(fakes, state, error_type, message, expected, says) -> None:
    """The stream is read to its end: a cancel between the last message and the end would race it."""
    last = fakes.status("ended", 1, end_state=state, error_type=error_type, message=message)
    fake = fakes.transport(fakes.status("denoising", 1), last, fakes.status("denoising", 1))
    with pytest.raises(expected, match=says), Client("host:1", transport=fake).stream("x") as events:
        list(events)
    assert list(fake.streams[0].script) == [] and not fake.streams[0].cancelled.is_set() and not fake.stopped


@pytest.mark.parametrize("end_state", ["aborted", "cancelled"])
def test_errors_say_for_programs_how_a_request_ended(fakes, end_state) -> None:
    last = fakes.status("ended", end_state=end_state, error_type="CANCELLED", message="the request was cancelled")
    with pytest.raises(RequestCancelledError) as caught:
        Client(transport=fakes.transport(last)).generate("x")
    assert (caught.value.error_type, caught.value.end_state) == ("CANCELLED", end_state)


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (DiffSplatError, "INTERNAL"),
        (InvalidRequestError, "INVALID_ARG"),
        (ServerUnavailableError, "UNAVAILABLE"),
        (ServerError, "INTERNAL"),
        (ContractMismatchError, "CONTRACT_MISMATCH"),
        (RequestCancelledError, "CANCELLED"),
        (RequestTimeoutError, "DEADLINE_EXCEEDED"),
    ],
)
def test_every_error_has_a_type(error, error_type) -> None:
    raised = error("why")
    assert (raised.error_type, raised.retry_after_s, raised.end_state) == (error_type, None, None)


@pytest.mark.parametrize("hint_s", [None, 2.5])
def test_the_text_of_a_stage_s_error_is_read_as_it_is_written(hint_s) -> None:
    said = StageError("OVERLOADED", "64 requests are\nalready waiting [now]", hint_s)
    for text in (said.to_text(), f"in ensemble 'diffsplat', {said.to_text()}"):
        assert StageError.from_text(text) == said
    assert StageError.from_text("Stub process 'decode_0_0' is not healthy.") is None


@pytest.mark.parametrize("stage", ["DECODE", "RASTERIZE", "PACKAGE"])
def test_an_early_end_in_a_later_stage_is_a_typed_error(fakes, stage) -> None:
    end = {"end_state": "expired", "error_type": "DEADLINE_EXCEEDED", "message": "deadline_s passed"}
    last = fakes.finished(**{f"EARLY_END_{stage}": fakes.text(end)})
    fake = fakes.transport(last)
    with pytest.raises(RequestTimeoutError, match="deadline_s passed"):
        Client(transport=fake).generate("x")
    assert not fake.stopped
    fake = fakes.transport({**last, f"EARLY_END_{stage}": fakes.text({"end_state": "expired"})})
    with pytest.raises(ServerError, match=f"EARLY_END_{stage} is not the JSON"):
        Client(transport=fake).generate("x")


def test_the_server_gets_the_time_that_is_left_as_the_deadline(fakes, clock) -> None:
    fake = fakes.transport(fakes.finished())
    client = Client(transport=fake)
    for options in ({"timeout_s": 20}, {"timeout_s": 20, "deadline_s": 5.0}, {"timeout_s": 1e6}):
        client.generate("x", **options)
    assert [tensors["DEADLINE_S"].tolist() for _, tensors, _, _ in fake.calls] == [[20], [5], [604_800]]


def test_tensors_that_come_with_an_earlier_or_later_message_count(fakes) -> None:
    """Triton attaches an output to an older progress message when a stage overtakes its answer to that one."""
    last = fakes.finished()
    early = {**fakes.status("denoising", 3), "GAUSSIANS": last.pop("GAUSSIANS")}
    late = {"TIMINGS_DECODE": last.pop("TIMINGS_DECODE")}
    with Client(transport=fakes.transport(early, last, late)).stream("x") as events:
        progress, end = list(events)
    assert isinstance(progress, Progress) and progress.step == 3
    assert len(end.result.cloud) == 5 and end.result.timings_ms["decode"] == 4


def test_an_error_after_the_last_message_counts(fakes) -> None:
    fake = fakes.transport(fakes.finished(), TransportError("INTERNAL", "package failed"))
    with pytest.raises(ServerError, match="package failed"):
        Client(transport=fake).generate("x")


def test_typed_errors_are_builtin_ones_too() -> None:
    assert issubclass(InvalidRequestError, ValueError) and issubclass(RequestTimeoutError, TimeoutError)


def test_a_dead_server_is_asked_again_who_it_is(fakes) -> None:
    fake = fakes.transport(TransportError("UNAVAILABLE", "Socket closed"))
    client = Client(transport=fake)
    for _ in range(2):
        with pytest.raises(ServerUnavailableError):
            client.generate("x")
    assert fake.questions == 2


@pytest.mark.parametrize(
    ("prepare", "expected", "says"),
    [
        ({"ready": False}, ServerUnavailableError, "host:1 is not ready"),
        ({"ready": TransportError("UNAVAILABLE", "refused")}, ServerUnavailableError, r"no server .* host:1 \(refused"),
        ({"ready": TransportError("DEADLINE_EXCEEDED", "")}, ServerUnavailableError, "no answer from host:1 within 5"),
        ({"ready": TransportError("UNIMPLEMENTED", "")}, ServerError, "not as a Triton server"),
        ({"config": TransportError("NOT_FOUND", "unknown model")}, ServerUnavailableError, "does not serve the model"),
        (
            {"config": {"contract_version": "999"}},
            ContractMismatchError,
            f"version 999, this client {CONTRACT_VERSION}: install",
        ),
        ({"config": {}}, ContractMismatchError, "version unknown"),
    ],
)
def test_a_server_that_cannot_be_used_gets_no_request(fakes, prepare, expected, says) -> None:
    fake = fakes.transport(fakes.finished())
    for name, value in prepare.items():
        setattr(fake, name, value)
    with pytest.raises(expected, match=says):
        Client("host:1", transport=fake).generate("x")
    assert not fake.calls


def test_bad_options_are_refused_before_anything_is_sent(fakes) -> None:
    fake = fakes.transport()
    for bad in ({"prompt": ""}, {"prompt": "x", "steps": 0}, {"prompt": "x", "timeout_s": 0}):
        with pytest.raises(InvalidRequestError):
            Client(transport=fake).generate(**bad)
    for timeout_s in (-1, float("nan"), float("inf"), 1e12, "1", True):
        with pytest.raises(InvalidRequestError, match="timeout_s"):
            Client(transport=fake, timeout_s=timeout_s)
    assert fake.questions == 0


@pytest.mark.parametrize("url", ["", "host", "host:", ":1", "host:port", "host:0", "host:65536", "http://h:1", "h/x:1"])
def test_bad_addresses_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="url = "):
        Client(url)


def test_good_addresses() -> None:
    assert Client("grpc://host:8001").url == "host:8001"
    assert Client("[::1]:8001").url == "[::1]:8001"


class TestStopping:
    """A caller that stops waiting stops the server's work, once, under the request's own id."""

    def test_close(self, fakes) -> None:
        fake = fakes.transport(fakes.status("denoising", 1), fakes.status("denoising", 2))
        events = Client(transport=fake).stream("x")
        next(events)
        events.close()
        events.close()
        assert fake.stopped == [fake.request_id] and fake.streams[0].cancelled.is_set()
        assert list(events) == []

    @pytest.mark.parametrize("answer", STOP_ANSWERS)
    def test_stop_returns_what_the_server_says(self, fakes, answer) -> None:
        fake = fakes.transport(fakes.status("denoising", 1), block=True)
        fake.stop_answer = answer
        with Client(transport=fake) as client, client.stream("x") as events:
            next(events)
            assert client.stop(events.request_id) == answer
            assert events.stop() == answer
            assert events.stop() == "already_finished", "nothing is left to stop"
        assert fake.stopped == [fake.request_id] * 2

    def test_stop_without_an_answer(self, fakes) -> None:
        fake = fakes.transport(fakes.status("denoising", 1), block=True)
        client = Client(transport=fake)
        fake.stop_answer = "perhaps"
        with pytest.raises(ServerError, match="did not say what became of the request"):
            client.stream("x").stop()
        fake.stop_error = TransportError("UNAVAILABLE", "gone")
        for stop in (client.stream("x").stop, lambda: client.stop("id")):
            with pytest.raises(ServerUnavailableError, match="gone"):
                stop()

    def test_leaving_the_block(self, fakes) -> None:
        fake = fakes.transport(fakes.status("denoising", 1))
        with Client(transport=fake).stream("x") as events:
            next(events)
        assert fake.stopped == [fake.request_id]

    def test_forgetting_the_stream(self, fakes) -> None:
        fake = fakes.transport(fakes.status("denoising", 1))
        next(Client(transport=fake).stream("x"))
        assert fake.stopped == [fake.request_id]

    def test_ctrl_c_while_waiting(self, fakes) -> None:
        fake = fakes.transport(fakes.status("denoising", 1), KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            Client(transport=fake).generate("x")
        assert fake.stopped == [fake.request_id] and fake.streams[0].cancelled.is_set()

    def test_another_thread_frees_a_blocked_reader(self, fakes) -> None:
        fake = fakes.transport(fakes.status("denoising", 1), block=True)
        events = Client(transport=fake).stream("x")
        next(events)
        closer = when_read(events, events.close)
        with pytest.raises(RequestCancelledError):
            next(events)
        closer.join(10)
        assert fake.stopped == [fake.request_id]

    def test_a_stop_that_fails_hides_no_error(self, fakes) -> None:
        fake = fakes.transport(TransportError("DEADLINE_EXCEEDED", ""))
        fake.stop_error = TransportError("UNAVAILABLE", "gone")
        with pytest.raises(RequestTimeoutError):
            Client(transport=fake).generate("x")
        assert fake.stopped == [fake.request_id]


def test_another_server_behind_a_reconnect_is_noticed(fakes, clock) -> None:
    """gRPC reconnects silently, but no server stops and starts again within RECHECK_S."""
    fake = fakes.transport(fakes.finished())
    client = Client("host:1", transport=fake)
    client.generate("x")
    fake.config = {"contract_version": "999"}
    clock[0] += RECHECK_S
    with pytest.raises(ContractMismatchError, match="version 999"):
        client.generate("x")
    assert [model for model, *_ in fake.calls] == ["diffsplat"]  # the second request was not sent
    fake.config = {"contract_version": str(CONTRACT_VERSION)}
    assert client.generate("x").seed == 7


def test_a_timeout_of_milliseconds_does_not_mean_a_missing_server(fakes, clock) -> None:
    """The first question may take all the time of the request; if it expires, the request has."""
    fake = fakes.transport(fakes.finished())
    fake.ready = TransportError("DEADLINE_EXCEEDED", "")
    for timeout_s in (0.001, 0.02, 4.9):
        with pytest.raises(RequestTimeoutError, match=f"timeout_s = {timeout_s:g} passed before"):
            Client("host:1", transport=fake).generate("x", timeout_s=timeout_s)
    with pytest.raises(ServerUnavailableError, match="no answer from host:1 within 5 s"):
        Client("host:1", transport=fake).generate("x", timeout_s=5.1)


def test_threads_share_a_stream(fakes) -> None:
    """Each event goes to one of them, and all see the end."""
    script = [fakes.status("denoising", step) for step in range(200)]
    events = Client(transport=fakes.transport(*script, fakes.finished())).stream("x")
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda _: list(events), range(4)))
    steps = [event.step for part in parts for event in part if isinstance(event, Progress)]
    assert sorted(steps) == list(range(200))
    assert sum(isinstance(event, Finished) for part in parts for event in part) == 1


def test_the_deadline_covers_the_connection(fakes, clock, monkeypatch) -> None:
    fake = fakes.transport(fakes.finished())
    ready = fake.model_ready

    def slow(model: str, timeout_s: float) -> bool:
        clock[0] += 0.5
        return ready(model, timeout_s)

    monkeypatch.setattr(fake, "model_ready", slow)
    Client(transport=fake).generate("x", timeout_s=2)
    assert fake.calls[0][3] == 1.5
    with pytest.raises(RequestTimeoutError):
        Client(transport=fake).generate("x", timeout_s=0.5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fakes, last: last.pop("GAUSSIANS"),
        lambda fakes, last: last.update(GAUSSIANS=np.zeros((3, 13), np.float32)),
        lambda fakes, last: last.update(TIMINGS=fakes.text([1])),
        lambda fakes, last: last.update(TIMINGS=fakes.text(b"[" * 100_000)),
        lambda fakes, last: last.update(TIMINGS=fakes.text(b'{"encode": 1' + b"0" * 400 + b"}")),
        lambda fakes, last: last.pop("STATUS"),
        lambda fakes, last: last.update(STATUS=fakes.text(b"{")),
        lambda fakes, last: last.update(STATUS=fakes.text({"phase": "finished"})),
        lambda fakes, last: last.update(fakes.status("dreaming")),
        lambda fakes, last: last.update(fakes.status("ended", end_state="failed", message="no error type")),
        lambda fakes, last: last.update(
            fakes.status("ended", end_state="bored", error_type="INTERNAL", message="unknown state")
        ),
        lambda fakes, last: last.update(STATUS=fakes.text(b"[" * 100_000)),
        lambda fakes, last: last.update(fakes.status("finished", step=float("inf"))),
        lambda fakes, last: last.clear(),
    ],
)
def test_a_broken_contract_is_the_servers_error(fakes, spoil) -> None:
    last = fakes.finished()
    spoil(fakes, last)
    fake = fakes.transport(last)
    with pytest.raises(ServerError):
        Client(transport=fake).generate("x")
    assert fake.stopped == [fake.request_id]


@pytest.mark.parametrize("frames", [None, np.zeros((3, 16, 16, 3), np.uint8), np.zeros((4, 16, 16, 3), np.float32)])
def test_missing_or_wrong_frames_are_the_servers_error(fakes, frames) -> None:
    last = fakes.finished() if frames is None else fakes.finished(FRAMES=frames)
    with pytest.raises(ServerError, match="FRAMES is"):
        Client(transport=fakes.transport(last)).generate("x", frame_poses=four_views(), frame_size=16)


def test_a_missing_file_or_a_damaged_one_is_the_servers_error(fakes) -> None:
    with pytest.raises(ServerError, match=r"without the requested file \(ply\)"):
        Client(transport=fakes.transport(fakes.finished())).generate("x", formats=("ply",))
    last = fakes.finished(**fakes.files(ply=b"ply\nnonsense"))
    del last["GAUSSIANS"]
    with pytest.raises(ServerError, match="cannot be read"):
        Client(transport=fakes.transport(last)).generate("x", formats=("ply",))


def test_previews_come_between_progress_and_are_no_result(fakes) -> None:
    shown = fakes.splats(3)
    fake = fakes.transport(
        fakes.status("queued", queue_position=1),
        {**fakes.status("denoising", 1, previews=1), "PREVIEW": shown},
        fakes.status("denoising", 2, previews=1, previews_skipped=1),
        {**fakes.finished(), "PREVIEW": shown[:1]},  # breaks the contract, and is not shown
    )
    with Client(transport=fake).stream("x", preview_every=1) as events:
        queued, first, preview, second, last = events
    assert isinstance(queued, Queued) and isinstance(first, Progress) and isinstance(last, Finished)
    assert isinstance(preview, Preview) and isinstance(second, Progress)
    assert (preview.step, preview.steps, preview.number, preview.seed) == (1, 3, 1, 7)
    np.testing.assert_array_equal(preview.cloud.to_array(), shown)
    assert (first.previews_skipped, second.previews_skipped) == (0, 1)
    np.testing.assert_array_equal(last.result.cloud.to_array(), fakes.splats())


def test_a_preview_that_is_none_is_the_servers_error(fakes) -> None:
    fake = fakes.transport({**fakes.status("denoising", 1, previews=1), "PREVIEW": np.zeros((3, 13), np.float32)})
    with pytest.raises(ServerError, match=r"PREVIEW cannot be read: splats have shape \[3, 13\]"):
        list(Client(transport=fake).stream("x", preview_every=1))
    assert fake.stopped == [fake.request_id]


def test_several_files_come_by_their_formats(fakes) -> None:
    last = fakes.finished()
    cloud = SplatCloud.from_array(last.pop("GAUSSIANS"))
    made = {"splat": encode_splat(cloud, "opengl"), "ply": encode_ply(cloud)}
    last |= fakes.files(**made)
    result = Client(transport=fakes.transport(last)).generate("x", formats=["splat", "ply"])
    assert result.assets == made and list(result.assets) == ["splat", "ply"]
    with pytest.raises(ServerError, match=r"without the requested file \(glb\)"):
        Client(transport=fakes.transport(last)).generate("x", formats=["splat", "glb"])


@pytest.mark.parametrize("names", [[b"ply"], [b"ply", b"obj"], [b"ply", b"spz", b"glb"], [b"ply", b"\xff"]])
def test_files_without_a_known_format_are_the_servers_error(fakes, names: list[bytes]) -> None:
    last = fakes.finished(**fakes.files(ply=b"a", spz=b"b"))
    last["ASSET_FORMATS"] = np.array(names, np.object_)
    with pytest.raises(ServerError, match="ASSETS has 2 files, ASSET_FORMATS says: ply"):
        Client(transport=fakes.transport(last)).generate("x")


def test_the_published_file_does_not_stand_for_the_splats(fakes) -> None:
    """Its quaternions are not normalised, so the server sends the splats too."""
    last = fakes.finished()
    file = encode_ply(SplatCloud.from_array(2 * last["GAUSSIANS"]))
    last |= fakes.files(ply_compat=file)
    result = Client(transport=fakes.transport(last)).generate("x", formats=("ply_compat",))
    assert result.assets["ply_compat"] == file
    np.testing.assert_array_equal(result.cloud.to_array(), last["GAUSSIANS"])
    with pytest.raises(ServerError, match=r"without the requested file \(ply_compat\)"):
        Client(transport=fakes.transport(fakes.finished())).generate("x", formats=("ply_compat",))
    del last["GAUSSIANS"]
    with pytest.raises(ServerError, match="without GAUSSIANS"):
        Client(transport=fakes.transport(last)).generate("x", formats=("ply_compat",))


def test_a_stream_that_just_ends_is_the_servers_error(fakes) -> None:
    with pytest.raises(ServerError, match="without a result"):
        Client(transport=fakes.transport(fakes.status("denoising", 1))).generate("x")


def test_status_and_close(fakes) -> None:
    fake = fakes.transport()
    with Client(transport=fake) as client:
        status = client.status()
        assert status.ready and status.contract_version == CONTRACT_VERSION and len(status.models) == 6
        fake.ready = False
        status = client.status()
        assert not status.ready and {model.state for model in status.models} == {"UNAVAILABLE"}
        fake.config = TransportError("NOT_FOUND", "Request for unknown model: 'diffsplat' is not found")
        assert client.status().contract_version is None
    assert fake.closed


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (TransportError("INVALID_ARGUMENT", "prompt is missing", by_stage=True), ""),  # a refusal is a sign of life
        (TransportError("INTERNAL", "rasterize failed", by_stage=True), "rasterize failed"),
        (TransportError("INVALID_ARGUMENT", "expected 1 inputs but got 0"), "expected 1 inputs but got 0"),
        (TransportError("UNKNOWN", "Stub process is not healthy."), "Stub process is not healthy."),
        (TransportError("DEADLINE_EXCEEDED", ""), "no answer within 3 s: the stage hangs, or is busy"),
    ],
    ids=["refuses", "fails", "refused-by-triton", "dead", "silent"],
)
def test_the_status_is_that_of_the_stages_and_not_what_triton_says(fakes, fault, reason: str) -> None:
    fake = fakes.transport()
    fake.stage_faults["rasterize"] = fault
    status = Client(transport=fake).status(timeout_s=3)
    reasons = {model.name: model.reason for model in status.models}
    assert status.ready == (not reason) and reasons.pop("rasterize").startswith(reason)
    assert not any(reasons.values())


def test_an_image_needs_no_prompt_and_travels_whole(fakes) -> None:
    fake = fakes.transport(fakes.finished())
    image = b"\x89PNG\0\0\xff" * 100_000 + b"\0"
    with Client(transport=fake) as client:
        result = client.generate(image=image, estimate_elevation=True)
    ((_, tensors, _, _),) = fake.calls
    assert tensors["IMAGE"].tolist() == [image] and tensors["PROMPT"].tolist() == [b""]
    assert tensors["ESTIMATE_ELEVATION"].tolist() == [True] and "CONTROL_IMAGE" not in tensors
    assert result.request.image == image
