"""Many mixed requests at once: every good one ends right, and nothing is left behind.

    make soak                                                       BUNDLE=bundles/nano
    python -m benchmarks.soak bundles/pico [--requests 10000] [--clients 16] [--kill-every 500] [--json PATH]

`diffsplat serve` runs in a process of its own, edge included. `--clients` clients send good requests, requests that
they cancel, requests whose deadline passes, requests with a bad tensor, and clients that are killed while they wait.
After every `--kill-every` requests a stage's process, or tritonserver itself, is killed. A good request must give the
splats of the same request sent alone. At the end the service must be idle, with as many processes, threads and open
files as after the warm-up, and no more files in /dev/shm. Exits with 1 when anything is lost, wrong or left.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from diffsplat_client.client import Client
from diffsplat_client.errors import RequestTimeoutError, ServerUnavailableError
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.request import GenerationRequest
from diffsplat_client.transport import TransportError

from benchmarks.edge_overhead import kill_clients, serve
from benchmarks.ensemble_overhead import find_repository
from benchmarks.machine import describe_machine

TIMEOUT_S = 900.0
SETTLE_S = 30.0
RETRY_S = 1.0
GOOD = [GenerationRequest(prompt, seed=seed, steps=4) for seed, prompt in enumerate(("a red cube", "a blue cone"))]
LONG = GenerationRequest("a green sphere", seed=5, steps=200)
LATE = GenerationRequest("a green sphere", seed=5, steps=200, deadline_s=0.3)
KINDS = {"good": 0.7, "cancelled": 0.1, "late": 0.1, "bad": 0.07, "killed": 0.03}

# what may be more at the end than after the warm-up: pools of threads, and connections that end a little later
SLACK = {"processes": 0, "threads": 16, "files": 16, "shared_memory": 0, "memory_mb": 64}


class Soak:
    """The requests of all kinds against one service, and what became of them."""

    def __init__(self, url: str) -> None:
        """Sends every good request alone first: what all later ones must equal."""
        self._url = url
        self.ended: Counter[str] = Counter()
        self.refused = 0  # and sent again
        self.wrong: list[str] = []
        with Client(url, timeout_s=TIMEOUT_S) as client:
            self._expected = [client.generate(request).cloud.to_array() for request in GOOD]

    def send(self, kind: str, number: int) -> None:
        """One request of a kind; what does not end as it should is noted.

        A request that is refused while the server restarts is sent again, as a user would.
        """
        give_up_s = time.monotonic() + TIMEOUT_S
        while True:
            try:
                fault = getattr(self, f"_{kind}")(number)
            except ServerUnavailableError as error:
                if time.monotonic() < give_up_s:
                    self.refused += 1
                    time.sleep(RETRY_S)
                    continue
                fault = f"refused for {TIMEOUT_S:g} s: {error}"
            except Exception as error:  # whatever it is, the others go on and the report names it
                fault = f"{type(error).__name__}: {error}"
            break
        self.ended[kind] += 1
        if fault:
            self.wrong.append(f"{kind} {number}: {fault}")

    def _good(self, number: int) -> str:
        which = number % len(GOOD)
        with Client(self._url, timeout_s=TIMEOUT_S) as client:
            splats = client.generate(GOOD[which]).cloud.to_array()
        expected = self._expected[which]
        if splats.shape != expected.shape:
            return f"{len(splats)} splats instead of {len(expected)}"
        error = float(np.abs(splats - expected).max())
        return f"differs by {error:g}" if error > 1e-5 * float(np.abs(expected).max()) else ""

    def _cancelled(self, number: int) -> str:
        with Client(self._url, timeout_s=TIMEOUT_S) as client, client.stream(LONG) as stream:
            next(stream)
        return ""

    def _late(self, number: int) -> str:
        with Client(self._url, timeout_s=TIMEOUT_S) as client:
            try:
                client.generate(LATE)
            except RequestTimeoutError:
                return ""
        return "a deadline of 0.3 s was kept by 200 steps"

    def _bad(self, number: int) -> str:
        transport = GrpcTransport(self._url)
        tensors = {"PROMPT": np.array([b"a red cube"], np.object_), "STEPS": np.array([-1 - number], np.int32)}
        try:
            for _ in transport.stream("diffsplat", tensors, f"bad-{number}", TIMEOUT_S):
                pass
        except TransportError as error:
            if error.code == "UNAVAILABLE":
                raise ServerUnavailableError(str(error)) from None
            return "" if error.code == "INVALID_ARGUMENT" else f"refused as {error.code}: {error}"
        finally:
            transport.close()
        return "a negative number of steps was accepted"

    def _killed(self, number: int) -> str:
        try:
            kill_clients(self._url, 1)
        except AssertionError:  # the client ended before its request ran, since the server is down
            raise ServerUnavailableError("the server is not ready") from None
        return ""


def descendants(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += descendants(int(child))
    return found


class Footprint:
    """What a service holds: its processes, their threads and open files, its files in /dev/shm, memory of the edge."""

    def __init__(self, launcher: int) -> None:
        self._launcher = launcher
        self._names: set[str] = set()  # of every run of the server so far, as their files in /dev/shm begin

    def take(self) -> dict[str, int]:
        """The present one."""
        pids = descendants(self._launcher)
        for pid in pids:
            self._names |= set(re.findall(r"diffsplat-server-[0-9a-f]+", " ".join(command_of(pid))))
        resident_pages = int(Path(f"/proc/{self._launcher}/statm").read_text().split()[1])
        return {
            "processes": len(pids),
            "threads": sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids),
            "files": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
            "shared_memory": sum(path.name.startswith(tuple(self._names)) for path in Path("/dev/shm").iterdir()),
            "memory_mb": resident_pages * os.sysconf("SC_PAGE_SIZE") // 2**20,
        }

    def settle(self, before: dict[str, int]) -> tuple[dict[str, int], list[str]]:
        """The one when nothing goes any more, and what is more than it was."""
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            after = self.take()
            more = [name for name, slack in SLACK.items() if after[name] > before[name] + slack]
            if not more or time.monotonic() > deadline_s:
                return after, [f"{name}: {before[name]} -> {after[name]}" for name in more]
            time.sleep(0.5)


def command_of(pid: int) -> list[str]:
    """Its command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def kill_something(launcher: int, draw: random.Random) -> str:
    """Kill a stage's process or tritonserver; its name."""
    victims = {}
    for pid in descendants(launcher)[1:]:
        words = command_of(pid)
        if Path(words[0]).name in ("tritonserver", "triton_python_backend_stub"):
            victims[pid] = words[1].split("/")[-3] if "stub" in words[0] else "tritonserver"
    pid = draw.choice(sorted(victims))
    os.kill(pid, signal.SIGKILL)
    return victims[pid]


def run(url: str, launcher: int, *, requests: int, clients: int, kill_every: int) -> dict[str, Any]:
    """All requests; the figures of the report."""
    draw = random.Random(0)
    kinds = draw.choices(list(KINDS), list(KINDS.values()), k=requests)
    soak = Soak(url)
    with ThreadPoolExecutor(clients) as workers:
        list(workers.map(lambda number: soak.send("good", number), range(2 * clients)))  # every pool is full now
    footprint, killed = Footprint(launcher), []
    before, started_s = footprint.take(), time.monotonic()
    soak.ended.clear()
    chunk = kill_every or requests
    with ThreadPoolExecutor(clients) as workers:
        for first in range(0, requests, chunk):
            batch = [workers.submit(soak.send, kind, first + i) for i, kind in enumerate(kinds[first : first + chunk])]
            if kill_every:
                killed.append(kill_something(launcher, draw))
            for one in batch:
                one.result()
    seconds = time.monotonic() - started_s
    for number in range(len(GOOD)):  # the last faults have been healed
        soak.send("good", requests + number)
    after, left = footprint.settle(before)
    figures = {
        "seconds": round(seconds, 1),
        "requests": dict(soak.ended),
        "refused": soak.refused,
        "killed": killed,
        "wrong": soak.wrong,
    }
    return {**figures, "before": before, "after": after, "left": left}


def main() -> int:
    """Soak, print, and write as JSON when asked; 1 when anything is wrong or left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="BUNDLE_OR_REPOSITORY")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--kill-every", type=int, default=500, metavar="N", help="requests; 0 kills nothing")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    with serve(find_repository(args.path)) as service:
        figures = run(
            service.edge_url, service.pid, requests=args.requests, clients=args.clients, kill_every=args.kill_every
        )
    for kind, count in figures["requests"].items():
        print(f"{kind:12}{count:>7}   wrong {sum(line.startswith(kind) for line in figures['wrong'])}")
    for name, count in figures["before"].items():
        print(f"{name:16}{count:>7} -> {figures['after'][name]}")
    print(f"killed: {', '.join(figures['killed']) or 'nothing'}; {figures['seconds']} s")
    print(f"refused and sent again: {figures['refused']} times")
    print("\n".join([*figures["wrong"][:20], *figures["left"]]) or "nothing is lost, wrong or left")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**describe_machine(), **figures}, indent=2) + "\n")
    return int(bool(figures["wrong"] or figures["left"]))


if __name__ == "__main__":
    sys.exit(main())
