"""The client stays light: importing it loads numpy, but neither gRPC nor viewers nor networks."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "asyncio",
    "ssl",
    "torch",
    "tritonclient",
    "grpc",
    "rich",
    "PIL",
    "imageio_ffmpeg",
    "viser",
    "pxr",
    "diffsplat",
    "opentelemetry",
)


@pytest.mark.parametrize("module", ["diffsplat_client", "diffsplat_client.cli"])
def test_import_brings_numpy_alone(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = json.loads(done.stdout)
    assert "numpy" in loaded
    assert [name for name in HEAVY if name in loaded] == []
