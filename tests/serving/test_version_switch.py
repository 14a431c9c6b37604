"""What a change of version leaves behind."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffsplat.serving.server.processes import find_stubs
from diffsplat.serving.supervisor import version_switch
from diffsplat.serving.supervisor.version_switch import VersionSwitch
from tests.serving.processes import wait_for


def test_processes_that_an_unloaded_version_leaves_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton keeps them when a request, such as a probe, waits for another one that died."""
    stubs = []
    for version in ("1", "2"):
        model = tmp_path / "package" / version / "model.py"
        model.parent.mkdir(parents=True)
        model.write_text("import time\nprint(flush=True)\ntime.sleep(600)\n")
        command = ["triton_python_backend_stub", str(model), "package_0_0", "DEFAULT", ""]
        group = stubs[0].pid if stubs else 0
        stubs.append(subprocess.Popen(command, executable=sys.executable, process_group=group, stdout=subprocess.PIPE))
        assert stubs[-1].stdout is not None and stubs[-1].stdout.readline()
    leader = stubs[0].pid
    try:
        assert sorted((stub.model, stub.version) for stub in find_stubs(leader)) == [("package", "1"), ("package", "2")]
        monkeypatch.setattr(version_switch, "_UNLOAD_S", 0.1)
        monkeypatch.setattr(version_switch, "load_model", lambda server, name: None)
        monkeypatch.setattr(version_switch, "read_configs", lambda repository, version: {})
        copy = SimpleNamespace(drop_stage=lambda name, version: None)
        server = SimpleNamespace(
            pid=leader, running=True, version="1", repository=tmp_path, copy=copy, requests_in_flight=lambda version: 0
        )
        lines: list[str] = []
        switch = VersionSwitch(server, "2", lines.append)  # type: ignore[arg-type]
        switch._stages = ["package"]
        assert switch.retire(lambda: False) and lines == ["version 1 is unloaded"]
        wait_for(lambda: stubs[0].poll() is not None)
        assert stubs[1].poll() is None
    finally:
        for stub in stubs:
            stub.kill()
            stub.communicate()
