"""NVIDIA's perf_analyzer, of the tritonclient wheel: find it, run it on the ensemble, read its profile export.

The wheel's program needs two libraries that it does not carry, libcudart.so.12 and libb64.so.0d. nvidia-pytriton has
copies of both; without it (against a server elsewhere) they come from the package nvidia-cuda-runtime-cu12 and the
system's libb64. A GPU is not needed.
"""

import importlib.metadata
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from diffsplat_client.contract import ENSEMBLE, STATUS

# name that the program asks for -> where copies lie below site-packages
_LIBRARIES = {
    "libcudart.so.12": ("nvidia/cuda_runtime/lib/libcudart.so.12", "nvidia_pytriton.libs/libcudart-*.so.12*"),
    "libb64.so.0d": ("nvidia_pytriton.libs/libb64-*.so.0d",),
}


class Load(NamedTuple):
    """How requests arrive: `concurrency` at all times (closed loop), or `rate_hz` a second, Poisson (open loop)."""

    concurrency: int | None = None
    rate_hz: float | None = None

    def arguments(self) -> list[str]:
        """As options of perf_analyzer."""
        if self.rate_hz is not None:
            one_rate = f"{self.rate_hz:.4f}:{self.rate_hz:.4f}:1"  # without an end it refuses --request-count
            return ["--request-rate-range", one_rate, "--request-distribution", "poisson"]
        return ["--concurrency-range", str(self.concurrency)]


class RequestTimes(NamedTuple):
    """Seconds of one request, from when it was sent."""

    sent_s: float  # on the clock of the whole run
    first_s: float  # until the first response that reports progress, not a place in the queue
    total_s: float  # until the last response, which carries the object


class ProfileError(ValueError):
    """A profile export without requests, or with one that did not finish."""


def parse_profile(path: Path) -> list[RequestTimes]:
    """The requests of `--profile-export-file`, in the order in which they were sent.

    perf_analyzer's own latency of a stream is neither that of the first nor that of the last response, so both are
    taken from the time stamps (nanoseconds), and what a response said from its STATUS.

    Raises:
        ProfileError: the file has another form, no requests, or a request that did not finish.
    """
    try:
        experiments = json.loads(path.read_text())["experiments"]
        times = [_request_times(request) for experiment in experiments for request in experiment["requests"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ProfileError(f"{path.name} is no profile export of the ensemble: {error!r}") from None
    except ProfileError as error:
        raise ProfileError(f"{path.name}: {error}") from None
    if not times:
        raise ProfileError(f"{path.name} has no requests")
    return sorted(times)


def _request_times(request: dict[str, Any]) -> RequestTimes:
    sent, stamps = request["timestamp"], request["response_timestamps"]
    phases = [json.loads(outputs[STATUS.name])["phase"] for outputs in request["response_outputs"]]
    if phases[-1:] != ["finished"]:
        raise ProfileError(f"a request ended as {phases[-1] if phases else 'nothing'}, not as finished")
    first = next(i for i, phase in enumerate(phases) if phase != "queued")
    return RequestTimes(sent / 1e9, (stamps[first] - sent) / 1e9, (stamps[-1] - sent) / 1e9)


def write_inputs(path: Path, prompts: Sequence[str], steps: int) -> None:
    """The requests that perf_analyzer sends in turn, one per prompt, each with a seed of its own."""
    data = [{"PROMPT": [prompt], "SEED": [seed], "STEPS": [steps]} for seed, prompt in enumerate(prompts)]
    path.write_text(json.dumps({"data": data}))


def run(url: str, load: Load, *, requests: int, inputs: Path, export: Path, timeout_s: float) -> list[RequestTimes]:
    """Send `requests` requests to the ensemble at `url` and return their times.

    Raises:
        RuntimeError: perf_analyzer failed; the message has the beginning of what it printed.
    """
    command = [str(find_program()), "-m", ENSEMBLE, "-u", url, "-i", "grpc", "--async", "--streaming"]
    command += ["--input-data", str(inputs), "--request-count", str(requests)]
    command += ["--profile-export-file", str(export), *load.arguments()]
    with library_folder() as folder:
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]))
        done = subprocess.run(
            command,
            env={**os.environ, "LD_LIBRARY_PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
    if done.returncode != 0 or not export.is_file():
        raise RuntimeError(f"perf_analyzer ended with {done.returncode}:\n{done.stdout[:2000]}")
    return parse_profile(export)


def find_program() -> Path:
    """The program of the tritonclient that is installed; FileNotFoundError without it."""
    try:
        files = importlib.metadata.files("tritonclient") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "perf_analyzer":
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError("perf_analyzer is missing: pip install 'tritonclient[grpc]==2.51.0', which has it")


@contextmanager
def library_folder() -> Iterator[Path]:
    """A folder with links to the libraries, under the names that perf_analyzer asks for.

    Libraries of which this Python has no copy are left to the system.
    """
    root = Path(str(importlib.metadata.distribution("tritonclient").locate_file("")))
    with TemporaryDirectory(prefix="diffsplat-perf-analyzer-") as name:
        for library, patterns in _LIBRARIES.items():
            found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
            if found:
                (Path(name) / library).symlink_to(found[0])
        yield Path(name)
