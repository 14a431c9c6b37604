"""The README's figures are those of the stored results, and every figure of it stands in a pasted block."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme
from benchmarks.readme import BLOCKS, FiguresError, NotMeasuredError, read_results, rewrite, unrecognised
from benchmarks.tensorrt_build import table

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
BLOCK = re.compile(r"<!-- figures: .*?<!-- end -->", re.DOTALL)
FIGURE = re.compile(r"\d[\d,.]*\s?(?:%|ms|s|hours|minutes|MB|GB|dB|M|x|splats|nouns|px|pixels)\b")


def test_the_readme_shows_the_stored_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert readme.main([]) == 0, capsys.readouterr().out
    assert len(BLOCK.findall(README.read_text())) == len(BLOCKS)


def test_no_figure_stands_outside_the_blocks() -> None:
    assert FIGURE.search("took 63 s") and FIGURE.search("2.4 GB;") and FIGURE.search("16,384 splats")
    prose = BLOCK.sub("", README.read_text())
    prose = re.sub(r"```.*?```|^    .*?$", "", prose, flags=re.DOTALL | re.MULTILINE)
    assert not FIGURE.findall(prose)


def test_an_edited_figure_is_a_diff_and_is_rewritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, right = tmp_path / "README.md", README.read_text()
    wrong = right.replace("| right colour |", "| right colours |")
    page.write_text(wrong)
    assert wrong != right and readme.main([], page) == 1
    printed = capsys.readouterr().out
    assert "-| right colours |" in printed and "+| right colour |" in printed
    assert page.read_text() == wrong
    assert readme.main(["--write"], page) == 0 and page.read_text() == right
    assert readme.main([], page) == 0


def test_other_results_give_another_readme() -> None:
    def edited(name: str) -> dict[str, Any]:
        figures = read_results(name)
        return {**figures, "shape_accuracy": 0.123} if name == "quality_nano" else figures

    assert "| 12.3 % |" in rewrite(README.read_text(), edited)


def test_nouns_that_are_not_recognised_are_named() -> None:
    shares = {"ring": {"shape": 0.0}, "hat": {"shape": 0.8}, "mug": {"shape": 0.49}}
    assert unrecognised({"by_noun": shares}) == ["ring", "mug"]


def test_a_block_without_results_says_so() -> None:
    def read(name: str) -> dict[str, Any]:
        return read_results("no_such_benchmark" if name == "fresh_clone" else name)

    with pytest.raises(NotMeasuredError):
        read_results("no_such_benchmark")
    assert "\nNot measured yet: `python -m benchmarks no_such_benchmark`" in rewrite(README.read_text(), read)


def test_missing_blocks_and_figures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "README.md"
    page.write_text(README.read_text().replace("<!-- figures: quality -->", "<!-- figures: qualities -->"))
    assert readme.main(["--write"], page) == 1
    assert "'qualities'" in capsys.readouterr().err
    with pytest.raises(FiguresError, match="the results lack the figure 'cores'; measure again"):
        rewrite(README.read_text(), lambda name: {} if name == "rasterizer" else read_results(name))


def test_the_page_on_tensorrt_shows_the_stored_engines() -> None:
    (path,) = ROOT.glob("benchmarks/results/*/tensorrt_build.json")
    rows = json.loads(path.read_text())["tensorrt_build"]["rows"]
    assert table(rows) in (ROOT / "docs" / "tensorrt.md").read_text()
