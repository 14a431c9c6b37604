"""Stop many requests at random moments, then check that the server is alive, idle and right.

    python -m benchmarks.stop_storm bundles/pico [--streams 500] [--commands 24] [--json PATH]

First `--streams` streams are closed 0 .. 40 ms after they were sent, by several threads, then as many 0 .. 40 ms after
their first message. Then `--commands` processes of `diffsplat generate` get SIGINT or SIGTERM at random moments. After
each storm the engine must become idle, and the next request must give the same splats as one before the storm. Exits
with 1 if the server died or any of this failed.

The served repository reports progress after every step, so that messages are always in the later stages when a request
ends: with error responses at the ends of stopped requests, Triton 2.51 then dies within 40 stops.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diffsplat_client.client import Client
from diffsplat_client.errors import ServerUnavailableError
from diffsplat_client.request import GenerationRequest

from benchmarks.ensemble_overhead import find_repository
from benchmarks.machine import describe_machine

if TYPE_CHECKING:
    from diffsplat.serving.server.server import TritonServer

CLOSED_WITHIN_S = 0.040
WORKERS = 8
SIGNALLED_WITHIN_S = 3.0  # of the start of a command: some are still importing, some are denoising
IDLE_TIMEOUT_S = 60.0
IDLE_CHECKS = 10
LONG = GenerationRequest("a red cube", seed=1, steps=200)
CHECKED = GenerationRequest("a blue cone", seed=2, steps=4)


def chatty_repository(repository: Path, folder: Path, **parameters: str) -> Path:
    """A copy of a repository, in links, that reports progress after every step; more parameters of `denoise`."""
    copy = folder / repository.name
    shutil.copytree(repository, copy, copy_function=os.link)
    config = copy / "denoise" / "config.pbtxt"
    text = config.read_text()
    for name, value in {"progress_interval_s": "0", **parameters}.items():
        text, edits = re.subn(rf'(key: "{name}", value: {{ string_value: )"[^"]*"', rf'\g<1>"{value}"', text)
        assert edits == 1, (config, name)
    config.unlink()  # a link
    config.write_text(text)
    return copy


def stop_streams(url: str, count: int, *, first_message: bool = False, seed: int = 0) -> None:
    """Send `count` requests, `WORKERS` at a time, and close each 0 .. 40 ms later, or after its first message.

    Requests that find the queue full are refused, as they should be; they count as stopped.
    """
    delays_s = [random.Random(seed + i).uniform(0, CLOSED_WITHIN_S) for i in range(count)]
    with Client(url, timeout_s=60) as client, ThreadPoolExecutor(WORKERS) as workers:

        def stop_one(delay_s: float) -> None:
            stream = client.stream(LONG)
            with contextlib.suppress(ServerUnavailableError):
                if first_message:
                    next(stream)
            time.sleep(delay_s)
            stream.close()

        list(workers.map(stop_one, delays_s))


def stop_commands(url: str, count: int, folder: Path, seed: int = 0) -> list[int]:
    """Exit codes of `count` commands, two at a time, that were interrupted at random moments."""
    draw = random.Random(seed)
    plan = [(draw.choice((signal.SIGINT, signal.SIGTERM)), draw.uniform(0, SIGNALLED_WITHIN_S)) for _ in range(count)]
    command = [sys.executable, "-m", "diffsplat_client.cli", "generate", LONG.prompt]
    command += ["--steps", str(LONG.steps), "--url", url, "--no-viewer", "-o", str(folder)]

    def stop_one(planned: tuple[signal.Signals, float]) -> int:
        number, delay_s = planned
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        return process.wait(60)

    with ThreadPoolExecutor(2) as workers:
        return list(workers.map(stop_one, plan))


def wait_until_idle(server: "TritonServer", timeout_s: float = IDLE_TIMEOUT_S) -> float:
    """Seconds until no stage had a request. TimeoutError, or RuntimeError when the server is gone.

    Requests that wait between two stages are in no gauge, so the server must look idle several times in a row.
    """
    started = idle_since = time.monotonic()
    idle_checks = 0
    while idle_checks < IDLE_CHECKS:
        if not server.running:
            raise RuntimeError(f"the server died:\n{server.why_it_failed()}")
        in_flight = server.requests_in_flight()
        if in_flight == 0:
            idle_since = idle_since if idle_checks else time.monotonic()
            idle_checks += 1
        else:
            idle_checks = 0
        if time.monotonic() - started > timeout_s:
            raise TimeoutError(f"{in_flight} requests are still in flight after {timeout_s:g} s")
        time.sleep(0.05)
    return idle_since - started


def splats_of(url: str) -> np.ndarray:
    """The request that is compared, [N, 14]."""
    with Client(url, timeout_s=120) as client:
        return client.generate(CHECKED).cloud.to_array()


def check_after(server: "TritonServer", expected: np.ndarray) -> dict[str, float]:
    """Seconds until idle, and the largest difference of the next request from `expected`."""
    idle_s = wait_until_idle(server)
    error = float(np.abs(splats_of(server.grpc_url) - expected).max())
    if error > 1e-6 * np.abs(expected).max():
        raise RuntimeError(f"the next request differs from the one before the storm by {error:g}")
    return {"idle_after_s": round(idle_s, 3), "largest_difference": error}


def main() -> int:
    """Storm, check, print a row for each storm, and write them as JSON when asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stop_storm", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", type=Path, metavar="BUNDLE_OR_REPOSITORY")
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--commands", type=int, default=24)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()

    from diffsplat.serving.server.server import TritonServer

    repository = find_repository(args.path)
    rows: list[dict[str, Any]] = []
    failure = None
    with (
        tempfile.TemporaryDirectory(dir=repository.parent) as folder,  # links cannot leave their file system
        TritonServer(chatty_repository(repository, Path(folder))) as server,
    ):
        expected = splats_of(server.grpc_url)
        storms = {
            "sent": (args.streams, lambda count: stop_streams(server.grpc_url, count)),
            "running": (args.streams, lambda count: stop_streams(server.grpc_url, count, first_message=True)),
            "commands": (args.commands, lambda count: stop_commands(server.grpc_url, count, Path(folder) / "out")),
        }
        print(f"{'storm':10}{'stopped':>9}{'seconds':>9}{'idle after s':>14}  result")
        for name, (count, storm) in storms.items():
            started = time.monotonic()
            row: dict[str, Any] = {"storm": name, "stopped": count}
            try:
                storm(count)
                row |= {"seconds": round(time.monotonic() - started, 1), **check_after(server, expected)}
                result = "alive, idle, next request equal"
            except Exception as error:
                result = failure = f"{type(error).__name__}: {error}"
            rows.append({**row, "result": result})
            figures = f"{row.get('seconds', '-'):>9}{row.get('idle_after_s', '-'):>14}"
            print(f"{name:10}{count:>9}{figures}  {result}", flush=True)
            if failure:
                break
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**describe_machine(), "path": str(args.path), "rows": rows}, indent=2) + "\n")
    return int(failure is not None)


if __name__ == "__main__":
    sys.exit(main())
