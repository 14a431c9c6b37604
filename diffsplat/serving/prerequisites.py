"""What the machine must have before anything is installed; each message names the fix.

Standard library only and old syntax, since any python3 may run this file by its path:

    python3 diffsplat/serving/prerequisites.py
"""

import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig

PYTHON_VERSIONS = ((3, 11), (3, 12))


def python_version() -> str:
    """Version of the running interpreter, such as "3.11"."""
    return "%d.%d" % sys.version_info[:2]  # noqa: UP031 - old syntax on purpose


def find_libpython() -> "str | None":
    """Folder of this interpreter's shared libpython, or None.

    Triton's Python backend runs models in a process of its own that is linked against the shared library. An
    interpreter may be linked statically, as Debian's is, and works without it, so the library can be missing.
    """
    name = "libpython%s.so.1.0" % python_version()  # noqa: UP031
    folders = [sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_prefix, "lib")]
    folders += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    folders += [os.path.join(root, multiarch) for root in ("/usr/lib", "/lib")] + ["/usr/lib64", "/usr/lib"]
    for folder in folders:
        if folder and os.path.isfile(os.path.join(folder, name)):
            return folder
    for ldconfig in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        if os.path.exists(ldconfig):
            listing = subprocess.run([ldconfig, "-p"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for line in listing.stdout.splitlines():
                library, _, path = line.strip().partition(" => ")
                if library.split(" ")[0] == name and os.path.isfile(path):
                    return os.path.dirname(path)
    return None


def libpython_problem() -> "str | None":
    """Why Triton's Python backend cannot start under this interpreter, with the fix; None if it can."""
    if find_libpython():
        return None
    version = python_version()
    return (
        f"the shared library libpython{version}.so.1.0 of {sys.executable} was not found, and Triton's Python models "
        f"need it: on Debian and Ubuntu install its package (apt-get install libpython{version}); with pyenv, "
        "reinstall Python with PYTHON_CONFIGURE_OPTS=--enable-shared"
    )


def problems() -> "list[str]":
    """One line for each missing prerequisite; empty if the machine has all of them."""
    found = []
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        found.append(
            f"this is {platform.system()} on {platform.machine()}: the Triton server needs Linux on x86-64; "
            "use such a machine, a virtual machine or WSL 2"
        )
    version = python_version()
    if sys.version_info[:2] not in PYTHON_VERSIONS:
        found.append(
            f"{sys.executable} is Python {version}, 3.11 or 3.12 is needed: install one of them, such as the packages "
            "python3.11 and python3.11-venv of Debian, and name it: make PYTHON=python3.11 ..."
        )
        return found  # the other checks are about this interpreter, which will not be used
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        found.append(
            f"{sys.executable} cannot make virtual environments (module venv or ensurepip is missing): on Debian and "
            f"Ubuntu install its package (apt-get install python{version}-venv)"
        )
    missing_library = libpython_problem()
    if missing_library:
        found.append(missing_library)
    return found


def main() -> int:
    """Print what is missing; the exit code is 0 if nothing is."""
    found = problems()
    for problem in found:
        print("prerequisite missing: " + problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
