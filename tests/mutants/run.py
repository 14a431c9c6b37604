"""Apply the mutants one at a time to a copy of the working tree, and see the test of each fail.

    python -m tests.mutants.run                    all, some ten minutes
    python -m tests.mutants.run condition flow     those whose name or file contains one of the words

The tests are run once on the unchanged copy first, where all must pass. Exit status 1: a mutant survived, no longer
applies, or a test fails without any.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
_TEST_TIMEOUT_S = 600  # a mutant may run forever: then it is killed, in both senses
_PASSED, _FAILED = 0, 1  # exit statuses of pytest; others say that no test was run


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run only mutants whose name or file contains one of these")
    words = parser.parse_args().words
    mutants = [m for m in MUTANTS if not words or any(word in f"{m.name} {m.file}" for word in words)]
    if not mutants:
        parser.error(f"no mutant's name or file contains {' or '.join(words)}")
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
    """Exit status of pytest in the copy; 1 too when it takes too long."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        result = subprocess.run(
            command, cwd=scratch, env=environment(scratch), timeout=_TEST_TIMEOUT_S, capture_output=quiet, check=False
        )
    except subprocess.TimeoutExpired:
        return _FAILED
    return result.returncode


def environment(scratch: Path) -> dict[str, str]:
    """The copy's packages before the installed ones, and no compiled code of one mutant left for the next."""
    paths = [str(scratch), str(scratch / "client")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


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
