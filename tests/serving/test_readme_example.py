"""The README's Python example runs as printed, but for the address."""

from pathlib import Path

import pytest
from diffsplat_client import read_ply

from diffsplat.serving.server.server import TritonServer

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.triton
def test_the_example_runs(server: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    code = README.read_text().split("```python\n", 1)[1].split("```", 1)[0]
    assert code.count('"localhost:8001"') == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("localhost:8001", server.grpc_url), "README.md", "exec"), {})
    assert len(read_ply("cube.ply")) > 100
    said = capsys.readouterr().out
    assert "(4, 256, 256, 3) 7 {" in said and "Finished(" in said
