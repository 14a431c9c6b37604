"""The load benchmark on a profile export that perf_analyzer wrote: which times it reads, and what it makes of them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import load as load_benchmark
from benchmarks.load import multiples
from benchmarks.load_levels import Level, summarise
from benchmarks.load_plot import draw
from benchmarks.perf_analyzer import Load, ProfileError, RequestTimes, find_program, library_folder, parse_profile

RECORDED = Path(__file__).parent / "data" / "profile_export.json"


def level(load: Load, p95_s: float, median_s: float = 1.0) -> Level:
    seconds = {50: median_s, 95: p95_s, 99: p95_s}
    return Level(load, 20, 1.0, seconds, seconds)


def test_a_recorded_export() -> None:
    """Two requests at a time against pico; of the responses' tensors the file keeps STATUS alone."""
    times = parse_profile(RECORDED)
    raw = [request for one in json.loads(RECORDED.read_text())["experiments"] for request in one["requests"]]
    assert len(times) == len(raw) > 2
    assert [one.sent_s for one in times] == sorted(one.sent_s for one in times)
    for one, request in zip(times, sorted(raw, key=lambda request: request["timestamp"]), strict=True):
        stamps = request["response_timestamps"]
        assert one.first_s == pytest.approx((stamps[0] - request["timestamp"]) / 1e9)
        assert one.total_s == pytest.approx((stamps[-1] - request["timestamp"]) / 1e9)
        assert 0 < one.first_s < one.total_s


def export(path: Path, *phases: str) -> Path:
    """One request with a response a second, each with one of these phases."""
    outputs = [{"STATUS": json.dumps({"phase": phase})} for phase in phases]
    stamps = [10**9 * (number + 1) for number in range(len(phases))]
    request = {"timestamp": 0, "response_timestamps": stamps, "response_outputs": outputs}
    path.write_text(json.dumps({"experiments": [{"requests": [request]}]}))
    return path


def test_a_place_in_the_queue_is_no_progress(tmp_path: Path) -> None:
    (times,) = parse_profile(export(tmp_path / "export.json", "queued", "queued", "denoising", "finished"))
    assert times == (0.0, 3.0, 4.0)


@pytest.mark.parametrize("phases", [(), ("denoising",), ("queued", "ended")])
def test_a_request_that_did_not_finish_is_refused(tmp_path: Path, phases: tuple[str, ...]) -> None:
    with pytest.raises(ProfileError, match="not as finished"):
        parse_profile(export(tmp_path / "export.json", *phases))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no profile export"),
        ("{}", "no profile export"),
        ('{"experiments": []}', "has no requests"),
        ('{"experiments": [{"requests": [{"timestamp": 1, "response_timestamps": []}]}]}', "no profile export"),
    ],
)
def test_exports_that_say_nothing(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match=message):
        parse_profile(path)


def test_throughput_is_counted_to_the_last_answer() -> None:
    times = [RequestTimes(10.0, 0.5, 4.0), RequestTimes(12.0, 1.5, 3.0)]
    found = summarise(Load(concurrency=2), times)
    assert found.throughput_hz == pytest.approx(2 / 5)
    assert (found.first_s[50], found.total_s[50]) == (1.0, 3.5) and found.total_s[95] == pytest.approx(3.95)


def test_bars_compare_the_open_loop_with_a_request_alone() -> None:
    alone = level(Load(concurrency=1), 1.2)
    half, most = Load(rate_hz=0.5), Load(rate_hz=0.8)
    assert not any(one.missed for one in multiples([alone, level(half, 3.9), level(most, 7.9)], (0.5, 0.8)))
    missed = [str(one) for one in multiples([alone, level(half, 4.1), level(most, 8.1)], (0.5, 0.8)) if one.missed]
    assert len(missed) == 2 and "50% of saturation" in missed[0] and "80% of saturation" in missed[1]


def test_no_level_sends_fewer_requests_than_it_has_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """perf_analyzer refuses to, the warm-up among them."""
    sent: list[tuple[int, int | None]] = []

    def run(url: str, load: Load, *, requests: int, export: Path, **options: object) -> list[RequestTimes]:
        sent.append((requests, load.concurrency))
        export.touch()
        return [RequestTimes(0.0, 0.5, 1.0)]

    monkeypatch.setattr(load_benchmark, "run", run)
    load_benchmark.measure("unused", requests=4, steps=2, concurrencies=(1, 16), shares=(0.5,))
    assert sent == [(16, 16), (4, 1), (16, 16), (4, None)]


def test_loads_as_options() -> None:
    assert Load(concurrency=4).arguments() == ["--concurrency-range", "4"]
    assert Load(rate_hz=1.25).arguments() == [
        "--request-rate-range",
        "1.2500:1.2500:1",
        "--request-distribution",
        "poisson",
    ]


def test_the_plot_shows_both_loops(tmp_path: Path) -> None:
    draw([level(Load(concurrency=1), 1.2), level(Load(rate_hz=0.5), 2.0)], tmp_path / "load.svg")
    text = (tmp_path / "load.svg").read_text()
    assert "closed loop, p95" in text and "open loop, p50" in text


def test_perf_analyzer_runs_with_the_libraries_of_the_wheels() -> None:
    """The wheel's program starts and finds all that it needs."""
    with library_folder() as folder:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        done = subprocess.run([find_program(), "--version"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Perf Analyzer Version" in done.stderr
