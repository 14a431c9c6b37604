"""`python -m benchmarks guard`: which ratios count as worse, and that none is lost on the way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cpu_backends, engine_policy, formats, load, rasterizer, request_cost
from benchmarks.guard import MISSING, WORSE, compare, judge, main, nearest
from benchmarks.ratios import RATIOS, FigureError, Ratio, find
from benchmarks.runs import BENCHMARKS, RESULTS

KEPT = sorted(RESULTS.glob("*/*.json"))


def point(value: float, at_most: bool = True, bar: float | None = None) -> Ratio:
    return Ratio("", value, at_most, bar=bar)


def ranged(value: float, reach: float, at_most: bool = True, bar: float | None = None) -> Ratio:
    return Ratio("", value, at_most, (value - reach, value + reach), bar)


@pytest.mark.parametrize(
    ("kept", "fresh", "words"),
    [
        # without intervals: a quarter
        (point(1.0), point(1.24), "ok"),
        (point(1.0), point(1.26), WORSE),
        (point(10.0, False), point(8.1, False), "ok"),
        (point(10.0, False), point(7.9, False), WORSE),
        # with intervals: 15 %, and they must be apart
        (ranged(1.0, 0.02), ranged(1.14, 0.02), "ok"),
        (ranged(1.0, 0.02), ranged(1.16, 0.02), WORSE),
        (ranged(1.0, 0.1), ranged(1.18, 0.1), "ok, the intervals overlap"),
        (ranged(10.0, 0.1, False), ranged(8.6, 0.1, False), WORSE),
        (ranged(10.0, 0.1, False), ranged(8.8, 0.1, False), "ok"),
        (point(1.0), ranged(1.2, 0.02), "ok"),
        # the bar is nearer, and was reached
        (ranged(1.05, 0.01), ranged(1.12, 0.01, bar=1.1), f"{WORSE}; misses its bar of 1.1"),
        (ranged(1.08, 0.03), ranged(1.12, 0.03, bar=1.1), "ok, the intervals overlap; misses its bar of 1.1"),
        (point(16.0, False), point(14.9, False, bar=15.0), f"{WORSE}; misses its bar of 15"),
        # it was missed before
        (point(0.9), point(0.95, bar=0.65), "ok; misses its bar of 0.65, as before"),
        (point(0.9), point(1.2, bar=0.65), f"{WORSE}; misses its bar of 0.65, as before"),
        # good news
        (ranged(1.0, 0.02), ranged(0.8, 0.02), "better: keep it"),
        (point(8.0, False), point(10.5, False), "better: keep it"),
        (ranged(1.0, 0.2), ranged(0.8, 0.1), "ok"),
        (None, point(1.0), "not kept yet"),
        (point(1.0), None, "not measured this time"),
    ],
)
def test_what_counts_as_worse(kept: Ratio | None, fresh: Ratio | None, words: str) -> None:
    assert judge("", kept, fresh).words == words


@pytest.mark.parametrize(
    ("kept", "fresh", "words"),
    [
        (point(5.8, False), point(3.9, False), "no limit from another kind of machine"),
        (point(22.0, False), point(16.0, False, bar=15.0), "ok"),
        (point(22.0, False), point(14.0, False, bar=15.0), f"{WORSE}; misses its bar of 15"),
        (point(0.9), point(1.5, bar=0.65), "no limit from another kind of machine; misses its bar of 0.65, as before"),
    ],
)
def test_against_another_kind_of_machine_bars_alone_count(kept: Ratio, fresh: Ratio, words: str) -> None:
    assert judge("", kept, fresh, same_kind=False).words == words


def write(folder: Path, name: str, figures: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(figures))


def policy(machine: str, first_step: float, throughput: float) -> dict[str, Any]:
    """Figures of the engine's policy, as its `main` writes them."""
    rows = [
        engine_policy.Row("first step", [first_step] * 3, 0.25),
        engine_policy.Row("throughput", [throughput] * 3, 1.0, at_most=False),
    ]
    figures = [{**row._asdict(), "median": row.median, "interval": row.interval} for row in rows]
    return {"machine": machine, "rows": figures}


def test_a_regression_fails_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "kept" / "box-2-cores", "engine_policy", policy("box-2-cores", 0.2, 1.5))
    write(tmp_path / "same", "engine_policy", policy("box-2-cores", 0.21, 1.45))
    write(tmp_path / "slow", "engine_policy", policy("box-2-cores", 0.21, 1.2))
    assert main(["--fresh", str(tmp_path / "same")], tmp_path / "kept") == 0
    said = capsys.readouterr().out
    assert "engine_policy on box-2-cores; kept: box-2-cores\n" in said and WORSE not in said
    others = [name for name in RATIOS if name != "engine_policy"]
    assert f"not compared: {', '.join(others)}" in said
    assert main(["--fresh", str(tmp_path / "slow")], tmp_path / "kept") == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if WORSE in line]
    assert line.split() == ["throughput:", "median", "1.500", "1.200", "1.200", "..", "1.200", ">=", "1.304", WORSE]


def test_another_kind_of_machine_stands_in_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "kept" / "x86-64-avx2-8-cores", "previews", {"median": 1.0})
    write(tmp_path / "kept" / "nvidia-h200", "previews", {"median": 5.0})
    write(tmp_path / "new", "previews", {"machine": "x86-64-avx512-2-cores", "median": 1.01})
    assert main(["previews", "--fresh", str(tmp_path / "new")], tmp_path / "kept") == 0
    assert "kept: x86-64-avx2-8-cores, none of this kind of machine" in capsys.readouterr().out
    assert nearest("x86-64-avx512-2-cores", ["x86-64-avx512-2-cores", "x86-64-avx2-2-cores"]) == "x86-64-avx512-2-cores"
    assert nearest("x86-64-avx512-2-cores", []) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "previews: no figures"),
        ("{", "previews: Expecting"),
        ('{"median": "1"}', "previews: median = '1'"),
        ('{"ratios": []}', MISSING),
    ],
)
def test_figures_that_are_missing_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "previews.json").write_text(content)
    assert main(["previews", "--fresh", str(tmp_path)], tmp_path / "kept") == 1
    assert message in capsys.readouterr().out


def test_names_without_ratios_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in ((["soak"], "no ratios of soak"), (["--fresh", str(tmp_path)], "holds none of")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_every_key_of_the_registry_is_in_the_kept_figures_or_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Each kept file against itself: nothing is worse, every key is a line, every other benchmark is named."""
    assert KEPT and RATIOS.keys() <= BENCHMARKS.keys()
    for folder in {path.parent for path in KEPT if path.stem in RATIOS}:
        main(["--fresh", str(folder)])
        said = capsys.readouterr().out
        assert WORSE not in said
        compared, _, rest = said.partition("not compared: ")
        for name, keys in RATIOS.items():
            if not (folder / f"{name}.json").is_file():
                assert name in rest
                continue
            ratios, absent = find(name, json.loads((folder / f"{name}.json").read_text()))
            assert ratios or absent == [key.path for key in keys]
            for line in [*ratios, *absent]:
                assert f"\n{line} " in compared


def some(kind: type, **values: Any) -> Any:
    """A row of a benchmark whose other fields do not matter here."""
    return kind(**{field: None for field in kind._fields} | values)


def whole_run_of_formats() -> dict[str, Any]:
    return formats.measure(50)


WRITTEN: dict[str, Callable[[], dict[str, Any]]] = {
    "rasterizer": lambda: {"rows": [some(rasterizer.Row, name="forward", threads=1, ratio=16, bar=15)._asdict()]},
    "cpu_backends": lambda: {
        "rows": [some(cpu_backends.Row, step="nano", candidate="openvino fp32", ratio=0.5)._asdict()],
        "best": [cpu_backends.best("nano", [some(cpu_backends.Row, step="nano", ratio=0.5)], None, 0.65)._asdict()],
    },
    "request_cost": lambda: {
        "rows": {
            name: some(request_cost.Cost, over_base=1.2, interval=(1.1, 1.3))._asdict() for name in request_cost.cases()
        }
    },
    "load": lambda: {"multiples": [load.Multiple("50% of saturation", 3.0, 4.0)._asdict()]},
    "engine_policy": lambda: policy("", 0.2, 1.5),
    "formats": whole_run_of_formats,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_registry_reads_what_benchmarks_write(name: str) -> None:
    written = json.loads(json.dumps(WRITTEN[name]()))
    ratios, absent = find(name, written)
    assert ratios and not absent
    assert {verdict.words for verdict in compare(name, written, written)} == {"ok"}


def test_steps_of_a_request_are_not_guarded() -> None:
    ratios, _ = find("request_cost", WRITTEN["request_cost"]())
    assert {"guidance 1: over_base", "format usdz: over_base", "16 frames of 256 px: over_base"} < ratios.keys()
    assert not [name for name in ratios if "steps" in name]


def test_what_was_not_measured_is_no_ratio_and_what_is_no_number_is_refused() -> None:
    rows = [{"name": "a", "threads": 1, "ratio": None}, {"name": "b", "threads": 2, "ratio": 3.0}]
    ratios, absent = find("rasterizer", {"rows": rows})
    assert [*ratios] == ["b, 2: ratio"] and not ratios["b, 2: ratio"].at_most and absent == []
    with pytest.raises(FigureError, match=r"b, 2: ratio = True, interval None, bar None: must be numbers"):
        find("rasterizer", {"rows": [rows[1] | {"ratio": True}]})
