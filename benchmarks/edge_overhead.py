"""What the edge costs: the time that it adds to a request, and its memory after many requests and killed clients.

    python -m benchmarks.edge_overhead bundles/pico [--pairs 200] [--requests 10000] [--killed 200] [--json PATH]

`diffsplat serve` runs in a process of its own. The same one-step request goes through the edge and straight to Triton
behind it, in interleaved pairs whose order alternates: printed is the median of the differences, with a bootstrap
interval. Then `--requests` requests run, eight at a time, and `--killed` client processes are killed with a request of
200 steps pending; the memory of the edge's process is that of its resident pages, after a warm-up and at the end.
Exits with 1 when a bar is missed.
"""

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from diffsplat_client.client import Client
from diffsplat_client.request import GenerationRequest

from benchmarks.bootstrap import median_interval, ratio_interval
from benchmarks.ensemble_overhead import find_repository
from benchmarks.machine import describe_machine

MAX_ADDED_MS = 3.0
MAX_GROWTH_MB = 16.0  # what an allocator keeps; a request with its answer has 50 kB, so that a leak shows
WARM_UP, WARM_UP_REQUESTS = 5, 500
WORKERS = 8
TIMEOUT_S = 300.0
SHORT = GenerationRequest("a red cube", seed=1, steps=1)
KILLED_CLIENT = """
import sys, time
from diffsplat_client import Client, ServerUnavailableError
while True:
    try:
        stream = Client(sys.argv[1]).stream("a red cube", steps=200)
        next(stream)
        break
    except ServerUnavailableError:  # it restarts
        time.sleep(0.2)
print("running", flush=True)
for _ in stream: pass
"""


class Service(NamedTuple):
    """A running `diffsplat serve`."""

    edge_url: str
    triton_url: str
    pid: int  # of the edge's process

    def memory_mb(self) -> float:
        """Resident memory of the edge's process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


@contextmanager
def serve(repository: Path) -> Iterator[Service]:
    """`diffsplat serve` on free ports, until the end of the block."""
    command = [sys.executable, "-m", "diffsplat_client.cli", "serve", str(repository)]
    with tempfile.TemporaryDirectory() as logs:
        command += ["--grpc-port", "0", "--metrics-port", "0", "--log-folder", logs]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith("gRPC ")), "")
            if not line:
                raise RuntimeError("diffsplat serve did not start; it has said why")
            yield Service(line.split()[1], f"127.0.0.1:{triton_port(process.pid)}", process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


def triton_port(launcher: int) -> int:
    """The gRPC port of the tritonserver below the guard below a launcher."""
    pid = launcher
    for _ in range(2):
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pid = int(child)
    (port,) = re.findall(rb"--grpc-port=(\d+)", Path(f"/proc/{pid}/cmdline").read_bytes())
    return int(port)


def time_pairs(service: Service, pairs: int) -> dict[str, list[float]]:
    """Seconds of the request through the edge and without it."""
    seconds: dict[str, list[float]] = {"edge": [], "triton": []}
    with (
        Client(service.edge_url, timeout_s=TIMEOUT_S) as edge,
        Client(service.triton_url, timeout_s=TIMEOUT_S) as triton,
    ):
        clients = {"edge": edge, "triton": triton}
        for pair in range(-WARM_UP, pairs):
            for name in sorted(clients, reverse=pair % 2 == 1):
                started = time.perf_counter()
                clients[name].generate(SHORT)
                elapsed = time.perf_counter() - started
                if pair >= 0:
                    seconds[name].append(elapsed)
    return seconds


def run_requests(url: str, count: int) -> None:
    """`count` requests, eight at a time."""
    with Client(url, timeout_s=TIMEOUT_S) as client, ThreadPoolExecutor(WORKERS) as workers:
        for _ in workers.map(lambda _: client.generate(SHORT), range(count)):
            pass


def kill_clients(url: str, count: int) -> None:
    """`count` processes that are killed while they wait for their answer, two at a time."""

    def kill_one(_: int) -> None:
        command = [sys.executable, "-c", KILLED_CLIENT, url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "running\n"
            process.kill()

    with ThreadPoolExecutor(2) as workers:
        list(workers.map(kill_one, range(count)))


def main() -> int:
    """Measure, print, and write as JSON when asked; 1 when a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge_overhead", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="BUNDLE_OR_REPOSITORY")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--killed", type=int, default=200)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    with serve(find_repository(args.path)) as service:
        seconds = time_pairs(service, args.pairs)
        run_requests(service.edge_url, min(WARM_UP_REQUESTS, args.requests))
        before_mb = service.memory_mb()
        run_requests(service.edge_url, args.requests)
        kill_clients(service.edge_url, args.killed)
        run_requests(service.edge_url, WORKERS)  # what the killed ones left has been cleared away by now
        after_mb = service.memory_mb()
    differences_ms = [1e3 * (edge - triton) for edge, triton in zip(seconds["edge"], seconds["triton"], strict=True)]
    added, (low, high) = statistics.median(differences_ms), median_interval(differences_ms)
    medians = {name: statistics.median(times) * 1e3 for name, times in seconds.items()}
    growth_mb = after_mb - before_mb
    print(
        f"one step, {args.pairs} interleaved pairs: {medians['edge']:.1f} ms with, {medians['triton']:.1f} ms without"
    )
    print(f"the edge adds {added:.2f} ms (95 %: {low:.2f} .. {high:.2f}; at most {MAX_ADDED_MS:g} wanted)")
    print(
        f"memory: {before_mb:.1f} MB, after {args.requests} requests and {args.killed} killed clients {after_mb:.1f} MB"
    )
    print(f"growth: {growth_mb:.1f} MB (at most {MAX_GROWTH_MB:g} wanted)")
    if args.json:
        figures = {"added_ms": added, "interval_ms": [low, high], "median_ms": medians, "growth_mb": growth_mb}
        interval = ratio_interval(seconds["edge"], seconds["triton"])
        ratio = {"ratio": medians["edge"] / medians["triton"], "interval": interval}
        counts = {"pairs": args.pairs, "requests": args.requests, "killed": args.killed}
        memory = {"before_mb": before_mb, "after_mb": after_mb}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        record = {**describe_machine(), **counts, **ratio, **figures, **memory, "seconds": seconds}
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return int(added > MAX_ADDED_MS or growth_mb > MAX_GROWTH_MB)


if __name__ == "__main__":
    sys.exit(main())
