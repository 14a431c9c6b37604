"""Many mixed requests at once: every good one ends right, and nothing is left behind.

    make soak                                                       BUNDLE=bundles/nano
    python -m benchmarks.soak bundles/pico [--requests 10000] [--clients 16] [--disturb-every 500] [--json PATH]

`diffsplat serve` runs in a process of its own, edge included. `--clients` clients send good requests, requests that
they cancel, requests whose deadline passes, requests with a bad tensor, and clients that are killed while they wait.
With every `--disturb-every` requests one of these happens, in turn: a stage's process is killed, tritonserver is
killed, another bundle is refreshed, rolled back, a bundle of NaN is offered (`--no-changes` leaves the last three out).
A good request must give the splats that its bundle makes of it alone. At the end the service must be idle, with as many
processes, threads and open files as after the warm-up, no more files in /dev/shm, and not much more memory. Exits with
1 when anything is lost, wrong or left.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from diffsplat_client.client import Client
from diffsplat_client.errors import RequestTimeoutError, ServerUnavailableError
from diffsplat_client.grpc_transport import GrpcTransport
from diffsplat_client.request import GenerationRequest
from diffsplat_client.transport import TransportError

from benchmarks.disturbances import KILLS, Bundles, in_turn, kill_something
from benchmarks.edge_overhead import kill_clients, serve
from benchmarks.ensemble_overhead import find_repository
from benchmarks.footprint import Footprint
from benchmarks.machine import describe_machine

if TYPE_CHECKING:
    from diffsplat.bundle import Bundle

TIMEOUT_S = 900.0
RETRY_S = 1.0
GOOD = [GenerationRequest(prompt, seed=seed, steps=4) for seed, prompt in enumerate(("a red cube", "a blue cone"))]
LONG = GenerationRequest("a green sphere", seed=5, steps=200)
LATE = GenerationRequest("a green sphere", seed=5, steps=200, deadline_s=0.3)
KINDS = {"good": 0.7, "cancelled": 0.1, "late": 0.1, "bad": 0.07, "killed": 0.03}


class Truth(NamedTuple):
    """What a request must give."""

    splats: np.ndarray  # [N, 14]
    tolerance: float  # as a share of the largest value


class Soak:
    """The requests of all kinds against one service, and what became of them."""

    def __init__(self, url: str) -> None:
        """Sends every good request alone first: what all later ones of the same bundle must equal."""
        self._url = url
        self.ended: Counter[str] = Counter()
        self.seconds: list[float] = []  # of good requests
        self.refused = 0  # and sent again
        self.wrong: list[str] = []
        self._truths: dict[tuple[str, int], Truth] = {}  # digest of a bundle, index of a good request
        with Client(url, timeout_s=TIMEOUT_S) as client:
            for which, request in enumerate(GOOD):
                alone = client.generate(request)
                assert alone.served is not None
                self._truths[alone.served.bundle_digest, which] = Truth(alone.cloud.to_array(), 1e-5)

    def also_expect(self, bundle: "Bundle") -> None:
        """What another bundle makes of the good requests, computed in this process."""
        from diffsplat.pipeline import Pipeline

        pipeline = Pipeline.from_bundle(bundle)
        for which, request in enumerate(GOOD):
            splats = pipeline.generate(request).gaussians
            assert splats is not None
            self._truths[bundle.digest, which] = Truth(splats, 1e-3)  # other back ends round otherwise

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
        started_s = time.monotonic()
        with Client(self._url, timeout_s=TIMEOUT_S) as client:
            result = client.generate(GOOD[which])
        self.seconds.append(time.monotonic() - started_s)
        truth = self._truths.get((result.served.bundle_digest if result.served else "", which))
        if truth is None:
            return f"made by {result.served}, which was never served"
        splats = result.cloud.to_array()
        if splats.shape != truth.splats.shape:
            return f"{len(splats)} splats instead of {len(truth.splats)}"
        error = float(np.abs(splats - truth.splats).max())
        return f"differs by {error:g}" if error > truth.tolerance * float(np.abs(truth.splats).max()) else ""

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
        kill_clients(self._url, 1)
        return ""


def run(
    soak: Soak, launcher: int, *, requests: int, clients: int, disturb_every: int, bundles: "Bundles | None" = None
) -> dict[str, Any]:
    """All requests, and after every `disturb_every` of them (0: never) a disturbance; the figures of the report."""
    draw = random.Random(0)
    kinds = draw.choices(list(KINDS), list(KINDS.values()), k=requests)
    with ThreadPoolExecutor(clients) as workers:
        list(workers.map(lambda number: soak.send("good", number), range(2 * clients)))  # every pool is full now
    footprint, done = Footprint(launcher), []
    before, started_s = footprint.take(), time.monotonic()
    soak.ended.clear()
    soak.seconds.clear()
    chunk = disturb_every or requests
    turns = in_turn(with_changes=bundles is not None)
    with ThreadPoolExecutor(clients) as workers:
        for first in range(0, requests, chunk):
            batch = [workers.submit(soak.send, kind, first + i) for i, kind in enumerate(kinds[first : first + chunk])]
            if disturb_every:
                done.append(disturb(soak, launcher, next(turns), draw, bundles))
            for one in batch:
                one.result()
            print(f"{first + len(batch)} of {requests}: {done[-1:] or 'undisturbed'}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started_s
    for number in range(len(GOOD)):  # the last faults have been healed
        soak.send("good", requests + number)
    after, left = footprint.settle(before)
    figures = {
        "seconds": round(seconds, 1),
        "requests": dict(soak.ended),
        "good_seconds": {str(q): round(float(np.percentile(soak.seconds, q)), 3) for q in (50, 95, 99, 100)},
        "refused": soak.refused,
        "disturbances": done,
        "wrong": soak.wrong,
    }
    return {**figures, "before": before, "after": after, "left": left}


def disturb(soak: Soak, launcher: int, kind: str, draw: random.Random, bundles: "Bundles | None") -> str:
    """Do something to the service; what it was. A fault of it is noted."""
    try:
        if kind in KILLS:
            return kill_something(launcher, kind, draw)
        assert bundles is not None
        return bundles.change(kind)
    except Exception as error:  # the requests go on, and the report names it
        soak.wrong.append(f"{kind}: {type(error).__name__}: {error}")
        return f"{kind} failed"


def main() -> int:
    """Soak, print, and write as JSON when asked; 1 when anything is wrong or left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--disturb-every", type=int, default=500, metavar="N", help="requests; 0 disturbs nothing")
    parser.add_argument("--no-changes", action="store_true", help="kill only: bundles are not changed")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="diffsplat-soak-") as folder:
        bundles = Bundles(find_repository(args.bundle), args.bundle, Path(folder))
        with serve(bundles.repository) as service:
            soak = Soak(service.edge_url)
            soak.also_expect(bundles.other)
            options = {"requests": args.requests, "clients": args.clients, "disturb_every": args.disturb_every}
            figures = run(soak, service.pid, **options, bundles=None if args.no_changes else bundles)
    for kind, count in figures["requests"].items():
        print(f"{kind:12}{count:>7}   wrong {sum(line.startswith(kind) for line in figures['wrong'])}")
    for name, count in figures["before"].items():
        print(f"{name:16}{count:>7} -> {figures['after'][name]}")
    quantiles = ", ".join(f"{seconds:.1f} s ({q} %)" for q, seconds in figures["good_seconds"].items())
    print(f"good requests took at most {quantiles}")
    print(f"meanwhile: {', '.join(figures['disturbances']) or 'nothing'}; {figures['seconds']} s")
    print(f"refused and sent again: {figures['refused']} times")
    print("\n".join([*figures["wrong"][:20], *figures["left"]]) or "nothing is lost, wrong or left")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**describe_machine(), **figures}, indent=2) + "\n")
    return int(bool(figures["wrong"] or figures["left"]))


if __name__ == "__main__":
    sys.exit(main())
