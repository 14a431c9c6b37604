"""Apply the mutants one at a time to a copy of the working tree, and see the test of each fail.

    python -m tests.mutants.run                    all, some minutes
    python -m tests.mutants.run condition flow     those whose name or file contains one of the words

The tests are run once on the unchanged copy first, where all must pass. Exit status 1: a mutant survived, no longer
applies, or a test fails without any.
"""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
_TEST_TIMEOUT_S = 300  # a mutant may run forever; pytest then kills it
_PASSED, _FAILED = 0, 1  # exit statuses of pytest; others say that no test was run
_BROKEN = 70
_ROOMS = ("diffsplat", "diffsplat_client", "training")
_LIBRARIES = (
    "cv2",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.controlnets.controlnet",
    "diffusers.models.transformers.pixart_transformer_2d",
    "diffusers.models.transformers.transformer_sd3",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers",
    "numba",
    "PIL.Image",
    "safetensors.torch",
)


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run only mutants whose name or file contains one of these")
    words = parser.parse_args().words
    mutants = [m for m in MUTANTS if not words or any(word in f"{m.name} {m.file}" for word in words)]
    if not mutants:
        parser.error(f"no mutant's name or file contains {' or '.join(words)}")
    preload()
    with tempfile.TemporaryDirectory(prefix="diffsplat-mutants-") as folder:
        scratch = Path(folder)
        copy_tree(scratch)
        tests = sorted({mutant.test for mutant in mutants})
        print(f"{len(tests)} tests on the unchanged code ...", flush=True)
        if (status := run_tests(scratch, tests)) != _PASSED:
            print(f"they must pass there first: pytest ended with status {status}")
            return 1
        return report(mutants, scratch)


def report(mutants: list[Mutant], scratch: Path) -> int:
    """Try every mutant and print what became of it; returns the exit status."""
    outcomes, started = [], time.monotonic()
    for done, mutant in enumerate(mutants):
        outcome = try_mutant(mutant, scratch)
        outcomes.append(outcome)
        left_s = (time.monotonic() - started) / (done + 1) * (len(mutants) - done - 1)
        print(f"{outcome:14}  {mutant.name:62}  {left_s:4.0f} s left", flush=True)
    killed = outcomes.count("killed")
    print(f"{killed} of {len(mutants)} mutants killed in {time.monotonic() - started:.0f} s")
    return int(killed != len(mutants))


def try_mutant(mutant: Mutant, scratch: Path) -> str:
    """Change one file of the copy, run the mutant's test there, and put the file back."""
    path = scratch / mutant.file
    if path.read_text().count(mutant.old) != 1:
        return "does not apply"
    with changed(path, mutant):
        status = run_tests(scratch, [mutant.test], quiet=True)
    return {_PASSED: "SURVIVED", _FAILED: "killed"}.get(status, f"pytest: {status}")


@contextmanager
def changed(path: Path, mutant: Mutant) -> Iterator[None]:
    """The file with the mutant's text instead of its own."""
    text = path.read_text()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        path.write_text(text)


def run_tests(scratch: Path, tests: list[str], quiet: bool = False) -> int:
    """Exit status of pytest in the copy, or minus the signal that ended it.

    Each run is a fork of this process, which has loaded the libraries: most tests take a second, importing torch and
    diffusers takes ten.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = _BROKEN
        try:
            status = _pytest_in(scratch, tests, quiet)
        except BaseException:  # whatever it is, the child must not go on as the parent does
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _pytest_in(scratch: Path, tests: list[str], quiet: bool) -> int:
    if quiet:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    os.chdir(scratch)
    others = [path for path in sys.path if path and Path(path) not in (ROOT, ROOT / "client")]
    sys.path[:] = [str(scratch), str(scratch / "client"), *others]
    sys.dont_write_bytecode = True  # two texts of a file within a second look alike to the cache
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "pytest_timeout", "-o", f"timeout={_TEST_TIMEOUT_S}"]
    status = int(pytest.main([*options, *tests]))
    packages = [sys.modules[name] for name in _ROOMS if name in sys.modules]
    assert packages, f"{tests} import nothing of {', '.join(_ROOMS)}"
    for package in packages:
        assert Path(str(package.__file__)).is_relative_to(scratch), f"{package.__file__} was tested, not {scratch}"
    return status


def preload() -> None:
    """Import the libraries that tests use, but nothing of the repository."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest warns of plugins that a library has imported before it
    for name in _LIBRARIES:
        importlib.import_module(name)
    torch.set_num_threads(1)


def copy_tree(scratch: Path) -> None:
    """Files that git tracks or would track, as they are in the working tree."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, scratch / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


if __name__ == "__main__":
    sys.exit(main())
