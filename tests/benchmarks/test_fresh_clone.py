"""How disk and memory of the demo are counted."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.fresh_clone import descendants, disk_bytes, proportional_bytes, table


def test_disk_counts_hard_links_once(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(bytes(1 << 20))
    alone = disk_bytes(tmp_path)
    assert alone >= 1 << 20
    os.link(tmp_path / "below" / "file", tmp_path / "again")
    (tmp_path / "link").symlink_to(tmp_path / "again")
    assert disk_bytes(tmp_path) - alone < 1 << 20


def test_memory_counts_the_processes_below() -> None:
    child = "import sys; data = bytearray(32 << 20); print(1, flush=True); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        assert process.pid in descendants(os.getpid()) and len(descendants(process.pid)) == 1
        found = proportional_bytes(process.pid)
        assert process.stdin is not None
        process.stdin.close()
    assert found["processes"] == 1 and 32 << 20 <= found["server_bytes"] < 128 << 20


def test_the_table_names_every_figure() -> None:
    figures = {
        "clone_bytes": 1e8,
        "venv_bytes": 2e9,
        "processes": 7,
        "server_bytes": 3e9,
        "install_s": 60,
        "demo_s": 30,
    }
    assert table(figures).splitlines() == [
        "disk: clone 0.1 GB, .venv 2.0 GB",
        "server: 7 processes, 3.0 GB (PSS)",
        "time: install 60 s, demo 30 s",
    ]
