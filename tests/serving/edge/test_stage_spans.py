"""Where the spans of a request's stages are drawn."""

from diffsplat_client.contract import ENSEMBLES, MODELS

from diffsplat.serving.edge.stage_reports import StageReport
from diffsplat.serving.edge.stage_spans import FOLLOWS, StageSpan, place_stages

MS = 1_000_000
FIRST = {"encode": 2.0, "queued": 1.0, "denoise": 50.0}
DECODE = {"queued_decode": 0.5, "decode": 10.0}
RASTERIZE = {"queued_rasterize": 0.25, "rasterize": 20.0}
PACKAGE = {"queued_package": 3.0, "package": 4.0}


def report(received_ms: float, durations_ms: dict[str, float], run: int = 1, index: int = 0) -> StageReport:
    return StageReport(run, index, received_ms / 1e3, durations_ms)


def starts(spans: list[StageSpan]) -> dict[str, float]:
    assert len({span.name for span in spans}) == len(spans)
    return {span.name: span.start_ns / MS for span in spans}


def test_stages_follow_each_other_and_two_run_side_by_side() -> None:
    chain = [report(160, FIRST), report(170.5, DECODE), report(190.75, RASTERIZE), report(180, PACKAGE)]
    spans = place_stages(chain, [0.1])
    assert starts(spans) == {
        "encode": 107,
        "queued": 109,
        "denoise": 110,
        "queued_decode": 160,
        "decode": 160.5,
        "queued_rasterize": 170.5,
        "rasterize": 170.75,
        "queued_package": 170.5,
        "package": 173.5,
    }
    durations = FIRST | DECODE | RASTERIZE | PACKAGE
    assert {span.name: span.duration_ns / MS for span in spans} == durations, "as measured"


def test_answers_that_come_late_move_nothing() -> None:
    """A client that reads slowly holds them up; the earliest possible of all answers counts."""
    chain = [report(160, FIRST), report(500, DECODE), report(900, RASTERIZE), report(901, PACKAGE)]
    assert starts(place_stages(chain, [0.1]))["rasterize"] == 170.75
    assert starts(place_stages([report(500, FIRST), *chain[1:2]], [0.1]))["decode"] == 490, "nor is decode in front"


def test_no_stage_begins_before_its_request_was_sent_or_ends_after_its_last_answer() -> None:
    spans = place_stages([report(110, FIRST), report(115, DECODE)], [0.1])
    assert starts(spans) == {"encode": 100, "queued": 102, "denoise": 103, "queued_decode": 115, "decode": 115}
    durations = {span.name: span.duration_ns / MS for span in spans}
    assert durations == {"encode": 2, "queued": 1, "denoise": 12, "queued_decode": 0, "decode": 0}


def test_each_run_of_the_server_has_its_own() -> None:
    """The second run denoises once more, which the client is not told again."""
    spans = place_stages([report(160, FIRST), report(400, DECODE, run=2), report(450, PACKAGE, run=2)], [0.1, 0.3])
    assert [(span.name, span.run) for span in spans if span.run == 2] == [
        *(("queued_decode", 2), ("decode", 2)),
        *(("queued_package", 2), ("package", 2)),
    ]
    assert starts(spans)["decode"] == 390 and starts(spans)["denoise"] == 110


def test_results_share_encode_and_have_their_own_stages() -> None:
    second = {**FIRST, "queued": 30.0}
    spans = place_stages([report(160, FIRST), report(200, second, index=1), report(175, DECODE)], [0.1])
    found = {(span.name, span.index): span.start_ns / MS for span in spans}
    assert found == {
        ("encode", 0): 107,
        ("queued", 0): 109,
        ("denoise", 0): 110,
        ("queued_decode", 0): 160,
        ("decode", 0): 160.5,
        ("queued", 1): 109,
        ("denoise", 1): 139,
    }


def test_a_reconstruction_begins_with_its_own_stage() -> None:
    spans = place_stages([report(130, {"reconstruct": 9.0}), report(140, RASTERIZE), report(137, PACKAGE)], [0.1])
    assert starts(spans) == {
        "reconstruct": 110.75,
        "queued_rasterize": 119.75,
        "rasterize": 120,
        "queued_package": 119.75,
        "package": 122.75,
    }


def test_a_request_without_answers_has_no_stages() -> None:
    assert place_stages([], [0.1]) == place_stages([], []) == []


def test_every_stage_has_a_place() -> None:
    assert MODELS.keys() - set(ENSEMBLES) <= FOLLOWS.keys()
    names = list(FOLLOWS)
    assert all(names.index(before) < names.index(name) for name in names for before in FOLLOWS[name])
