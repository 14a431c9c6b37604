"""What an export is narrowed to, and what it says when a device, a precision or a back end is not to be had.

What a card says is replaced here; the questions themselves are in tests/gpu.
"""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from diffsplat import backends
from diffsplat.backends import devices
from diffsplat.backends.devices import DeviceFacts
from diffsplat.bundle import Bundle
from diffsplat.runtime import load_graph
from export import candidates, repository, timing
from export.__main__ import main
from export.candidates import try_candidates
from export.common import BuildOptions, ExportError
from export.graphs import graph_specs
from export.repository import export_repository

CARD = DeviceFacts("cuda:0", int(16e9), "Tesla T4", "uuid", (7, 5))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def refused(bundle: Bundle, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What the command says; nothing may have been written."""
    assert main([str(bundle.root), "--out", str(out), *options]) == 1
    assert not out.exists() and not list(out.parent.iterdir())
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_device_that_does_not_exist_is_refused_in_one_line(
    tiny_bundle: Bundle, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cuda_count", lambda: 2)
    said = refused(tiny_bundle, out, capsys, "--device", "cuda:3")
    assert said == "error: device 'cuda:3': there are 2, cuda:0 .. cuda:1"
    monkeypatch.setattr(devices, "cuda_count", lambda: 0)
    assert re.match("error: device 'cuda': .*; use cpu", refused(tiny_bundle, out, capsys, "--device", "cuda"))
    said = refused(tiny_bundle, out, capsys, "--device", "tpu")
    assert said == "error: device 'tpu': must be cpu, cuda or cuda:N"


def test_a_precision_that_the_card_lacks(
    tiny_bundle: Bundle, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "inspect", lambda device: CARD)
    said = refused(tiny_bundle, out, capsys, "--device", "cuda", "--precision", "bf16")
    assert said.startswith("error: precision bf16: cuda:0 (Tesla T4) has compute capability 7.5, bf16 needs 8.0")


@pytest.mark.parametrize(
    ("facts", "precision", "reason"),
    [
        (dataclasses.replace(CARD, free_bytes=1000), "fp32", r"in fp32 needs about 0.00 GB of memory, and cuda:0 \(T"),
        (CARD, "bf16", "precision bf16: cuda:0 .* compute capability 7.5"),
    ],
)
def test_a_graph_that_does_not_fit_the_card_is_named(
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    facts: DeviceFacts,
    precision: str,
    reason: str,
) -> None:
    """Before anything is moved there: this machine need not have the card."""
    monkeypatch.setattr(candidates, "inspect", lambda device: facts)
    monkeypatch.setattr(candidates, "find_device", lambda device: torch.device("cuda", 0))
    graph = graph_specs(tiny_bundle.spec)[0]
    with pytest.raises(ExportError, match=reason):
        try_candidates(graph, tiny_bundle, BuildOptions("torch", "cuda", precision), tmp_path, lambda text: None)


def test_a_back_end_that_is_not_there_names_its_extra(
    tiny_bundle: Bundle, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = backends.BACKENDS["onnxruntime"]
    lacking = dataclasses.replace(onnx, packages=("a_package_that_nobody_has",), extras={"cpu": "some-extra"})
    monkeypatch.setitem(backends.BACKENDS, "onnxruntime", lacking)
    said = refused(tiny_bundle, out, capsys, "--backend", "onnxruntime")
    assert said == (
        "error: graph 'text_encoder': a_package_that_nobody_has is not installed: pip install "
        "'diffsplat-triton[some-extra]'"
    )


def test_a_back_end_without_the_precision(tiny_bundle: Bundle, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(tiny_bundle, out, capsys, "--backend", "onnxruntime", "--precision", "bf16")
    assert said == "error: graph 'text_encoder': onnxruntime has no bf16 on cpu, only fp32"


def test_what_was_refused_is_in_the_record_and_in_the_table(
    tiny_bundle: Bundle, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both precisions compete where none is named; GSRecon stays in float32."""
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(timing, "MAX_ROUNDS", 1)  # which of them is chosen does not matter here
    for name in set(backends.BACKENDS) - {"torch", "onnxruntime"}:
        monkeypatch.delitem(backends.BACKENDS, name)
    assert main([str(tiny_bundle.root), "--out", str(out), "--precision", "auto"]) == 0
    printed = capsys.readouterr().out
    graphs = export_repository(tiny_bundle.root, out, precision="auto").graphs
    for name, graph in graphs.items():
        tried = {(each.backend, each.precision): each for each in graph.candidates}
        halves = {("torch", "bf16"), ("onnxruntime", "bf16")} if name != "gsrecon" else set()
        assert set(tried) == {("torch", "fp32"), ("onnxruntime", "fp32"), *halves}
        if halves:
            assert "onnxruntime has no bf16 on cpu" in tried["onnxruntime", "bf16"].refused
            assert tried["torch", "bf16"].error is not None and 0 < tried["torch", "bf16"].error < 0.1
            half, whole = (tried["torch", precision].memory_mb or 0 for precision in ("bf16", "fp32"))
            assert half == pytest.approx(whole / 2)
    halves = ", ".join(name for name in graphs if name != "gsrecon")
    assert f"refused: onnxruntime bf16 for {halves}: onnxruntime has no bf16 on cpu, only fp32\n" in printed


def test_half_precision_is_served_where_it_was_asked_for(tiny_bundle: Bundle, out: Path) -> None:
    result = export_repository(tiny_bundle.root, out, "torch", precision="bf16")
    assert {name: graph.precision for name, graph in result.graphs.items()} == {
        **dict.fromkeys(result.graphs, "bf16"),
        "gsrecon": "fp32",
    }
    run = load_graph(out / "denoise" / "1", "denoiser", threads=1)
    assert (run.backend, run.precision) == ("torch", "bf16")
    config = (out / "diffsplat" / "config.pbtxt").read_text()
    assert "denoiser torch cpu bf16, decoder torch cpu bf16, gsrecon torch cpu fp32" in config
