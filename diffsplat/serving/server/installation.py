"""Which tritonserver is run, and what its processes need around them: the wheel's, or another one.

An NGC container has its server under /opt/tritonserver, laid out as `installation_at` expects.
"""

import importlib.util
import ipaddress
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from diffsplat.serving.errors import ServerStartError
from diffsplat.serving.prerequisites import find_libpython, python_version

STUB = "triton_python_backend_stub"
_LIBPYTHON = re.compile(rb"libpython(3\.\d+)\.so")


@dataclass(frozen=True)
class Installation:
    """A tritonserver with its Python backend.

    Attributes:
        server: the executable.
        backend: folder of the Python backend.
        stub: the executable that runs a model's process, linked against this interpreter's libpython.
        libraries: folder of the server's shared libraries.
    """

    server: Path
    backend: Path
    stub: Path
    libraries: Path


def find_installation(folder: Path | None) -> Installation:
    """The one in `folder`, or the wheel's. ServerStartError says what it lacks."""
    if folder is not None:
        return installation_at(folder)
    home = _find_server()
    libraries = home.parents[1] / "nvidia_pytriton.libs"
    return Installation(home / "bin" / "tritonserver", home / "backends" / "python", _stub_in(home), libraries)


def _find_server() -> Path:
    """Folder of the server inside the nvidia-pytriton wheel, found without importing it."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerStartError(
            "nvidia-pytriton is not installed (it carries a Triton server): pip install 'diffsplat-triton[server]', or "
            "name another server with --tritonserver"
        )
    home = Path(spec.submodule_search_locations[0]) / "tritonserver"
    if not _stub_in(home).is_file():
        raise ServerStartError(f"{home}: has no Python backend for Python {python_version()}")
    return home


def _stub_in(home: Path) -> Path:
    """The process of the Python backend for this interpreter."""
    return home / "python_backend_stubs" / python_version() / STUB


def installation_at(folder: Path) -> Installation:
    """A folder with `bin/tritonserver`, `lib` and `backends/python`, whose stub must fit this interpreter."""
    backend = folder / "backends" / "python"
    found = Installation(folder / "bin" / "tritonserver", backend, backend / STUB, folder / "lib")
    for path in (found.server, backend / "libtriton_python.so", found.stub):
        if not path.is_file():
            raise ServerStartError(f"--tritonserver {folder}: not a Triton installation ({path} is missing)")
        if path.suffix != ".so" and not os.access(path, os.X_OK):
            raise ServerStartError(f"--tritonserver {folder}: {path} is not executable")
    linked = {version.decode() for version in _LIBPYTHON.findall(found.stub.read_bytes())}
    if linked != {python_version()}:
        raise ServerStartError(
            f"--tritonserver {folder}: its Python backend runs Python {', '.join(sorted(linked)) or '(unknown)'}, and "
            f"this is Python {python_version()}: install the packages for that Python and run `diffsplat serve` with it"
        )
    return found


def check_address(address: str, folder: Path | None) -> None:
    """Refuse an address that is none, and to offer the wheel's server to a network."""
    try:
        parsed = ipaddress.IPv4Address(address)
    except ValueError:
        raise ServerStartError(f"--address {address}: must be an IPv4 address, such as 127.0.0.1 or 0.0.0.0") from None
    if folder is None and not parsed.is_loopback:
        raise ServerStartError(
            f"--address {address}: the wheel's Triton 2.51 has known vulnerabilities and listens on loopback only; to "
            "serve a network, name a newer server with --tritonserver (see deploy/)"
        )


def link_backend(installation: Installation, folder: Path) -> Path:
    """Its Python backend with the stub beside it, which is the only place the server looks.

    Symlinks, so that nothing is executed from `folder`: it may be on a file system mounted noexec.
    """
    python_backend = folder / "backends" / "python"
    python_backend.mkdir(parents=True)
    for path in (*(path for path in installation.backend.iterdir() if path.name != STUB), installation.stub):
        if path.name != "__pycache__":
            (python_backend / path.name).symlink_to(path)
    return python_backend.parent


def server_environment(installation: Installation) -> dict[str, str]:
    """Environment of the server's processes.

    The stub finds packages through the first `python3` on PATH. Its symlink is not resolved: it identifies the venv.
    """
    libpython = find_libpython()
    assert libpython is not None
    libraries = [str(installation.libraries), libpython, os.environ.get("LD_LIBRARY_PATH", "")]
    return {
        **os.environ,
        "PATH": os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath))),
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PYTHONUNBUFFERED": "1",
        # idle OpenMP threads sleep at once, since the stages' processes share the cores
        "OMP_WAIT_POLICY": "PASSIVE",
    }
