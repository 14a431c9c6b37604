"""What a service must survive: processes killed, another bundle refreshed and rolled back, a bad one refused.

The repository is a copy of its own, and so is the folder in which `diffsplat serve` opens its control socket.
"""

import itertools
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from benchmarks.footprint import server_processes
from benchmarks.refresh import ONE_PROMPT, changed_bundle
from diffsplat.bundle import Bundle, open_bundle
from diffsplat.integrity import BundleError
from diffsplat.serving.repository.versions import list_versions, served_version
from export.common import ExportError
from export.refresh import refresh, roll_back

KILLS = ("kill a stage", "kill the server")
CHANGES = ("refresh", "roll back", "offer a bad bundle")


def kill_something(launcher: int, kind: str, draw: random.Random) -> str:
    """Kill the process of a stage, or tritonserver; its name."""
    processes = server_processes(launcher)
    victims = [pid for pid, name in processes.items() if (name == "tritonserver") == (kind == "kill the server")]
    pid = draw.choice(sorted(victims))
    os.kill(pid, signal.SIGKILL)
    return f"{processes[pid]} killed"


class Bundles:
    """A served repository, and the bundles that are brought into it.

    Args:
        repository: is copied.
        bundle: what it was made of.
        folder: for all of it.

    Attributes:
        repository: to be served.
        other: a bundle that makes other objects.
    """

    def __init__(self, repository: Path, bundle: Path, folder: Path) -> None:
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        self.repository = Path(shutil.copytree(repository, folder / "repository"))
        self.bundle: Bundle = open_bundle(bundle)
        self.other = changed_bundle(self.bundle, folder / "other", 0.99)
        self._bad = changed_bundle(self.bundle, folder / "bad", float("nan"))

    def change(self, kind: str) -> str:
        """One of CHANGES; what is served then. ExportError if it does not go as it should."""
        if kind == "roll back":
            roll_back(self.repository, "1")
        elif kind == "offer a bad bundle":
            try:
                refresh(self._bad.root, self.repository, ONE_PROMPT)
            except (ExportError, BundleError):
                return "a bad bundle refused"
            raise ExportError("a bundle of NaN was accepted")
        elif (newest := list_versions(self.repository)[-1]) != served_version(self.repository):
            roll_back(self.repository, newest)  # forward: it has been exported before
        else:
            refresh(self.other.root, self.repository, ONE_PROMPT)
        return f"version {served_version(self.repository)} served"


def in_turn(with_changes: bool) -> Iterator[str]:
    """What is done after each chunk of requests."""
    kinds = [*KILLS, "refresh", "kill a stage", "roll back", "kill a stage", "offer a bad bundle", "kill the server"]
    return itertools.cycle([kind for kind in kinds if with_changes or kind in KILLS])
