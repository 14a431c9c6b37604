"""The tritonserver inside the nvidia-pytriton wheel: where it is, and what its processes need around them."""

import importlib.util
import os
import sys
from pathlib import Path

from diffsplat.serving.prerequisites import find_libpython, python_version


class ServerStartError(RuntimeError):
    """The server could not be started, or died while starting; the message says why and quotes the log."""


def find_server() -> Path:
    """Folder of the server inside the nvidia-pytriton wheel, found without importing it."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerStartError(
            "nvidia-pytriton is not installed (it carries the Triton server): pip install 'diffsplat-triton[server]'"
        )
    home = Path(spec.submodule_search_locations[0]) / "tritonserver"
    if not (home / "python_backend_stubs" / python_version()).is_dir():
        raise ServerStartError(f"{home}: has no Python backend for Python {python_version()}")
    return home


def link_backend(home: Path, folder: Path) -> Path:
    """The wheel's Python backend with this interpreter's stub beside it, which is the only place the server looks.

    Symlinks, so that nothing is executed from `folder`: it may be on a file system mounted noexec.
    """
    python_backend = folder / "backends" / "python"
    python_backend.mkdir(parents=True)
    stub = home / "python_backend_stubs" / python_version() / "triton_python_backend_stub"
    for path in (*(home / "backends" / "python").iterdir(), stub):
        if path.name not in ("__pycache__", stub.name) or path == stub:
            (python_backend / path.name).symlink_to(path)
    return python_backend.parent


def server_environment(home: Path) -> dict[str, str]:
    """Environment of the server's processes.

    The stub finds packages through the first `python3` on PATH. Its symlink is not resolved: it identifies the venv.
    """
    libpython = find_libpython()
    assert libpython is not None
    libraries = [str(home.parents[1] / "nvidia_pytriton.libs"), libpython, os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath))),
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PYTHONUNBUFFERED": "1",
        # idle OpenMP threads sleep at once, since the stages' processes share the cores
        "OMP_WAIT_POLICY": "PASSIVE",
    }
