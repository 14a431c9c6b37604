"""The tritonserver inside the nvidia-pytriton wheel."""

import importlib.util
from pathlib import Path

from diffsplat.serving.prerequisites import python_version


class ServerStartError(RuntimeError):
    """The server could not be started, or died while starting; the message says why and quotes the log."""


def find_server() -> Path:
    """Folder of the server inside the nvidia-pytriton wheel, found without importing it."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerStartError(
            "nvidia-pytriton is not installed (it carries a Triton server): pip install 'diffsplat-triton[server]', or "
            "name another server with --tritonserver"
        )
    home = Path(spec.submodule_search_locations[0]) / "tritonserver"
    if not stub_in(home).is_file():
        raise ServerStartError(f"{home}: has no Python backend for Python {python_version()}")
    return home


def stub_in(home: Path) -> Path:
    """The process of the Python backend for this interpreter."""
    return home / "python_backend_stubs" / python_version() / "triton_python_backend_stub"
