"""`python -m benchmarks.gpu`: the same code that a GPU runs, on the CPU with tiny networks; and what it survives."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest

from benchmarks.gpu.back_ends import _try
from benchmarks.gpu.machine import describe
from benchmarks.gpu.networks import request_graphs_of, specs
from benchmarks.gpu.rows import RESULTS, ROWS, TABLE, RowLog, markdown, read_rows, write_results
from benchmarks.gpu.runner import Outcome, Section, Settings, Task, run_all, run_section
from diffsplat.denoisers.graph_inputs import STEP
from tests.serving.processes import group_members, wait_for

# sections are forked, and here from a process that has threads
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300.0


def run_tiny(out: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, env=environment)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    """Section -> rows of a run of every section that needs no compiler."""
    out = tmp_path_factory.mktemp("gpu")
    sections = ["rasterizer", "goldens", "stages", "end_to_end", "scaling"]
    ended = run_tiny(out, "--device", "cpu", "--tiny", "--only", *sections)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    written = json.loads((out / RESULTS).read_text())
    assert [section["ended"] for section in written["sections"]] == ["complete"] * (1 + len(sections))
    assert written["rows"] == read_rows(out)
    text = (out / TABLE).read_text()
    assert all(f"## {name}: complete" in text for name in sections)
    return {name: [row for row in written["rows"] if row["section"] == name] for name in ("machine", *sections)}


def test_every_check_holds(results: dict[str, list[dict[str, object]]]) -> None:
    assert results["rasterizer"] and results["goldens"]
    assert all(row["holds"] for name in ("rasterizer", "goldens") for row in results[name])


def test_every_graph_of_every_family_is_timed_beside_its_roofline(results: dict[str, list[dict[str, object]]]) -> None:
    rows = results["stages"]
    assert {row["backbone"] for row in rows} == {"tiny_sd15", "tiny_pixart_sigma", "tiny_sd35"}
    names = {row["graph"] for row in rows}
    assert {"text_encoder", "denoiser_context", "denoiser", "decoder", "denoiser_modulations"} <= names
    for row in rows:
        assert row["precision"] == "bf16" and row["ms"] > 0
        assert row["share_of_roofline"] == pytest.approx(row["roofline_ms"] / row["ms"])


def test_requests_run_through_the_stages_and_the_engine(results: dict[str, list[dict[str, object]]]) -> None:
    for backbone in {row["backbone"] for row in results["end_to_end"]}:
        *stages, whole = (row for row in results["end_to_end"] if row["backbone"] == backbone)
        assert [row["stage"] for row in stages] == ["encode", "denoise", "decode"]
        assert whole["stage"] == "prompt to splats"
        assert whole["roofline_ms"] == pytest.approx(sum(row["roofline_ms"] for row in stages))
    assert [row["requests"] for row in results["scaling"]] == [1, 2]


def test_a_back_end_is_built_loaded_and_compared_or_says_why_not(tmp_path: Path) -> None:
    task = Task(Settings(tmp_path, "cpu", True), RowLog(tmp_path, "back_ends"), time.monotonic() + LIMIT_S)
    (spec,) = specs(task.settings, ("sd15",))
    (graph,) = (graph for graph in request_graphs_of(spec) if graph.name == STEP)
    assert _try(task, spec, graph, "onnxruntime", "fp32") is None
    (row,) = read_rows(tmp_path)
    assert row["error_to_torch"] < 1e-4 and row["ms"] > 0 and row["megabytes"] > 0.1
    assert "onnxruntime has no bf16 on cpu" in str(_try(task, spec, graph, "onnxruntime", "bf16"))
    late = Task(task.settings, task.log, time.monotonic())
    assert _try(late, spec, graph, "onnxruntime", "fp32") == "no time"


def test_a_device_that_does_not_exist_is_the_first_thing_said(tmp_path: Path) -> None:
    outcome = run_section(Section("machine", describe, 1.0), Settings(tmp_path, "cuda:77", True), LIMIT_S)
    assert outcome.ended.startswith("failed: DeviceError: device 'cuda:77'")


# --- sections: what the command survives ---


def two_rows_then(after: str):
    def run(task: Task) -> None:
        task.log.add(what="first")
        task.log.add(what="second", group=os.getpid())
        if after == "hang":
            subprocess.run(["sleep", str(LIMIT_S)])
        elif after == "die":
            os.kill(os.getpid(), 9)
        elif after == "raise":
            raise ValueError("out of luck\nand more")

    return run


@pytest.mark.parametrize(
    ("after", "ended"),
    [
        ("end", "complete"),
        ("hang", "out of time"),
        ("die", "killed by SIGKILL"),
        ("raise", "failed: ValueError: out of luck"),
    ],
)
def test_rows_survive_however_a_section_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str, ended: str
) -> None:
    join = ForkProcess.join

    def time_passes(process: ForkProcess, timeout: float | None = None) -> None:
        """The limit is over as soon as the rows are there."""
        if timeout == LIMIT_S:
            wait_for(lambda: (tmp_path / ROWS).exists() and len(read_rows(tmp_path)) == 2)
            timeout = 0.1
        join(process, timeout)

    if after == "hang":
        monkeypatch.setattr(ForkProcess, "join", time_passes)
    outcome = run_section(Section("some", two_rows_then(after), 1.0), Settings(tmp_path, "cpu", True), LIMIT_S)
    assert outcome.ended == ended
    first, second = read_rows(tmp_path)
    assert (first["what"], second["what"]) == ("first", "second")
    wait_for(lambda: not group_members(second["group"]))  # nor what it started


def test_time_that_a_section_leaves_goes_to_the_next_and_results_are_kept_after_each(tmp_path: Path) -> None:
    limits = []

    def run(task: Task) -> None:
        task.log.add(left_s=task.left_s)

    seen: list[int] = []
    sections = [Section("one", run, 1.0), Section("two", run, 1.0), Section("three", run, 2.0)]
    outcomes = run_all(sections, Settings(tmp_path, "cpu", True), 400.0, lambda done: seen.append(len(done)))
    assert [outcome.ended for outcome in outcomes] == ["complete"] * 3 and seen == [1, 2, 3]
    limits = [row["left_s"] for row in read_rows(tmp_path)]
    assert limits[0] <= 100 and 100 < limits[1] <= 400 / 3 and 200 < limits[2] <= 400


def test_without_time_nothing_is_started(tmp_path: Path) -> None:
    (outcome,) = run_all([Section("some", two_rows_then("end"), 1.0)], Settings(tmp_path, "cpu", True), 0.0, print)
    assert outcome.ended == "out of time" and not (tmp_path / ROWS).exists()


def test_a_row_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    RowLog(tmp_path, "some").add(what="whole", ms=12.5, reason="a | b")
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"section": "some", "what": "ha')
    write_results(tmp_path, [asdict(Outcome("some", "complete", 1.0))])
    assert read_rows(tmp_path) == [{"section": "some", "what": "whole", "ms": 12.5, "reason": "a | b"}]
    assert "| what | ms | reason |\n| --- | --- | --- |\n| whole | 12.5 | a / b |" in (tmp_path / TABLE).read_text()


def test_a_table_has_the_columns_of_all_its_rows() -> None:
    rows = [{"section": "s", "a": 1, "b": None}, {"section": "s", "a": 2, "c": 0.00123456}, {"section": "t", "d": 1}]
    text = markdown([{"name": "s", "ended": "complete", "seconds": 2.0}], rows)
    assert "| a | b | c |\n| --- | --- | --- |\n| 1 |  |  |\n| 2 |  | 0.00123 |" in text and "| d |" not in text
