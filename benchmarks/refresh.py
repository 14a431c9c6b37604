"""What clients notice while a running service changes to another bundle and back.

    python -m benchmarks.refresh bundles/pico [--rounds 3] [--json PATH]

Four clients ask again and again. First nothing happens, then the bundle is refreshed by one with other weights, and
rolled back, several times. Per change: answers; lost: requests that failed; mixed: objects that are neither version's,
or not that of the version which the answer names; and the longest time in which no request began to be answered, from
the first stage that the server loads to the last one that it unloads. What of that is longer than the longest such time
of the rest, in which the server changes nothing, is the time without a version; the bar is 1 s. Exits with 1 if a
request is lost or mixed, or above the bar.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffsplat_client import Client
from diffsplat_client.events import Finished
from diffsplat_client.generation import Generation
from diffsplat_client.request import GenerationRequest

from benchmarks.machine import describe_machine
from diffsplat.bundle import Bundle, open_bundle, write_bundle
from diffsplat.networks import bundle_network, network_builders
from diffsplat.pipeline import Pipeline
from diffsplat.serving.supervisor.policy import SupervisorPolicy
from diffsplat.serving.supervisor.supervisor import Supervisor
from export.gates import GateOptions
from export.refresh import refresh, roll_back
from export.repository import export_repository

CLIENTS = 4
REQUEST = GenerationRequest("a red cube", seed=3, steps=2)
ONE_PROMPT = GateOptions(prompts=("a red cube",))
TOLERANCE = 1e-3  # between an object that was served and the same made in one process
BAR_S = 1.0
USUAL_S = 30.0  # of watching before the first change
_TIMEOUT_S = 300.0


class Answer(NamedTuple):
    """A request that was answered."""

    began_s: float  # monotonic time of the first message
    result: Generation


class ClosedLoop:
    """Clients that ask again when they are answered, from `start` on, and what they got."""

    def __init__(self, url: str, clients: int = CLIENTS, pause_s: float = 0.0) -> None:
        self.answers: list[Answer] = []
        self.errors: list[BaseException] = []
        self._pause_s = pause_s  # of each client between its requests
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(url,)) for _ in range(clients)]

    def start(self) -> None:
        """Let the clients ask."""
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "ClosedLoop":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self, url: str) -> None:
        with Client(url, timeout_s=_TIMEOUT_S) as client:
            while not self._stop.wait(self._pause_s):
                try:
                    self.answers.append(self._ask(client))
                except Exception as error:
                    self.errors.append(error)

    def _ask(self, client: Client) -> Answer:
        began_s = 0.0
        for event in client.stream(REQUEST):
            began_s = began_s or time.monotonic()
            if isinstance(event, Finished):
                return Answer(began_s, event.result)
        raise RuntimeError("a stream ended without an object")


class Change(NamedTuple):
    """What was done to the service, and from when to when; monotonic times."""

    name: str
    start_s: float
    end_s: float
    loading_s: float  # when the server began to load another version; the end if it never did


def changed_bundle(bundle: Bundle, folder: Path, factor: float) -> Bundle:
    """A bundle with every parameter of every network scaled: other objects in every stage."""
    networks = {name: bundle_network(bundle, name) for name in network_builders(bundle.spec)}
    with torch.no_grad():
        for network in networks.values():
            for parameter in network.parameters():
                parameter.mul_(factor)
    tokenizers = [path.read_text() for path in bundle.tokenizer_paths]
    return write_bundle(folder, bundle.spec, networks, tokenizers, bundle.lineage)


def is_mixed(result: Generation, truths: dict[str, np.ndarray]) -> bool:
    """Whether an object differs from what the bundle that it names makes of `REQUEST`; digest -> splats [N, 14]."""
    if result.served is None or result.served.bundle_digest not in truths:
        return True
    made, truth = result.cloud.to_array(), truths[result.served.bundle_digest]
    return made.shape != truth.shape or not np.allclose(made, truth, atol=TOLERANCE, rtol=0.0)


def longest_wait(answers: Sequence[Answer], start_s: float, end_s: float) -> float:
    """Longest time between two moments in which no request began to be answered, in seconds."""
    began = sorted(answer.began_s for answer in answers if start_s <= answer.began_s <= end_s)
    times = [start_s, *began, end_s]
    return max(after - before for before, after in zip(times, times[1:], strict=False))


def measure(bundle: Bundle, folder: Path, rounds: int) -> dict[str, Any]:
    """Answers, lost requests, and a row per change."""
    repository = folder / "repository"
    export_repository(bundle.root, repository, "torch")  # at once; which back end runs has no part in a change
    other = changed_bundle(bundle, folder / "other", 0.99)
    changes: list[Change] = []

    def timed(name: str, act: Callable[[Callable[[str], None]], object]) -> None:
        start_s = time.monotonic()
        loading: list[float] = []

        def report(line: str) -> None:
            if line.startswith("loading "):
                loading.append(time.monotonic())

        act(report)
        end_s = time.monotonic()
        changes.append(Change(name, start_s, end_s, loading[0] if loading else end_s))
        print(f"{name}: {end_s - start_s:.1f} s", file=sys.stderr, flush=True)

    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    policy = SupervisorPolicy(drain_timeout_s=_TIMEOUT_S)
    with Supervisor(repository, policy=policy) as supervisor:
        with ClosedLoop(supervisor.server.grpc_url) as load:
            load.start()
            timed("no change", lambda _: time.sleep(USUAL_S))
            for number in range(1, rounds + 1):
                timed(f"refresh {number}", lambda report: refresh(other.root, repository, ONE_PROMPT, report=report))
                timed(f"roll back {number}", lambda report: roll_back(repository, report=report))
        assert supervisor.restarts == 0
    truths = {made.digest: _object_of(Pipeline.from_bundle(made)) for made in (bundle, other)}
    rows = rows_of(changes, load.answers, truths)
    return {"answers": len(load.answers), "lost": len(load.errors), "changes": rows}


def rows_of(
    changes: Sequence[Change], answers: Sequence[Answer], truths: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Figures per change; what is usual is seen while the server changes nothing."""
    usual_s = max(longest_wait(answers, change.start_s, change.loading_s) for change in changes)
    rows = []
    for change in changes:
        within = [answer for answer in answers if change.start_s <= answer.began_s <= change.end_s]
        waited_s = longest_wait(answers, change.loading_s, change.end_s)
        rows.append(
            {
                "change": change.name,
                "seconds": round(change.end_s - change.start_s, 1),
                "answers": len(within),
                "versions": sorted({answer.result.served.version for answer in within if answer.result.served}),
                "mixed": sum(is_mixed(answer.result, truths) for answer in within),
                "usual_wait_s": round(usual_s, 3),
                "longest_wait_s": round(waited_s, 3),
                "without_version_s": round(max(0.0, waited_s - usual_s), 3),
            }
        )
    return rows


def _object_of(pipeline: Pipeline) -> np.ndarray:
    splats = pipeline.generate(REQUEST).gaussians
    assert splats is not None
    return splats


def main() -> int:
    """Change, watch, print a row per change, and write them as JSON when asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refresh", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="refreshes, each followed by a roll back")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(open_bundle(args.bundle), Path(folder), args.rounds)
    print(f"{'change':14}{'seconds':>9}{'answers':>9}{'mixed':>7}{'longest wait s':>16}{'without version s':>19}")
    for row in figures["changes"]:
        print(
            f"{row['change']:14}{row['seconds']:>9}{row['answers']:>9}{row['mixed']:>7}{row['longest_wait_s']:>16}"
            f"{row['without_version_s']:>19}"
        )
    print(f"{figures['answers']} answers, {figures['lost']} requests lost")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        written = {**describe_machine(), "clients": CLIENTS, "bar_s": BAR_S, **figures}
        args.json.write_text(json.dumps(written, indent=2) + "\n")
    failed = any(row["mixed"] or row["without_version_s"] > BAR_S for row in figures["changes"])
    return int(failed or figures["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
