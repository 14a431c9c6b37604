"""`python -m benchmarks.cpu_backends [--json PATH] [--skip-sd15]`: one denoising step on the CPU by every back end.

nano's trained step with the rows of 1 and of 4 requests, and a step of SD1.5's size with random weights (one request
with guidance: 8 views of 32 x 32 latents). Two candidates at a time take turns in one process, and the medians of their
ratios count, because the speed of a shared machine drifts. nano is compared with ONNX Runtime in fp32, SD1.5 with eager
torch in fp32. About 5 minutes and 14 GB of memory.
"""

import argparse
import copy
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.machine import describe_machine
from benchmarks.rasterizer import two_cores_are_free
from diffsplat.backbones import BACKBONES
from diffsplat.backends import unavailable
from diffsplat.backends.eager import TorchGraph
from diffsplat.backends.onnx_runtime import OnnxGraph
from diffsplat.bundle import open_bundle
from diffsplat.denoisers.graph_inputs import STEP
from diffsplat.graph import Graph, Precision
from diffsplat.networks import build_graph_module, network_builders
from diffsplat.runtime import available_cores
from export.graph_spec import GraphSpec
from export.graphs import graph_specs
from export.parity import relative_error
from export.to_onnx import write_onnx

NANO_BAR = 0.65  # the best back end against ONNX Runtime in fp32
SD15_BARS: dict[Precision, float] = {"fp32": 0.58, "bf16": 0.34}  # the best one against eager torch in fp32
CANDIDATES = ("torch fp32", "torch channels-last fp32", "onnxruntime fp32", "openvino fp32", "openvino bf16")


class Row(NamedTuple):
    """One candidate against the yardstick of its step."""

    step: str
    candidate: str
    ms: float  # median of a call
    yardstick: str
    yardstick_ms: float
    ratio: float  # median over turns
    error: float  # largest error / largest value, against torch in fp32
    first_call_s: float  # loading and the first call, which compiles in OpenVINO
    cores_free: bool  # whether two cores were free right before


class Step:
    """A graph and every way to run it."""

    def __init__(self, graph: GraphSpec, module: nn.Module, folder: Path) -> None:
        self.graph = graph
        self.module = module
        self.folder = folder
        self.threads = available_cores()
        self._onnx: list[Path] = []

    def onnx(self, precision: Precision = "fp32") -> list[Path]:
        """The ONNX file, written once."""
        if not self._onnx:
            (self.folder / "onnx").mkdir()
            self._onnx = write_onnx(self.graph, self.module, self.folder / "onnx" / f"{self.graph.name}.onnx")
        return self._onnx

    def build(self, candidate: str) -> Graph:
        """Load a candidate."""
        if candidate == "torch fp32":
            return TorchGraph(self.graph.name, self.module)
        if candidate == "torch channels-last fp32":
            module = copy.deepcopy(self.module)
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return TorchGraph(self.graph.name, module)
        if candidate == "onnxruntime fp32":
            return OnnxGraph(self.graph.name, self.onnx()[0], self.threads)
        from diffsplat.backends.openvino import OpenVinoGraph
        from diffsplat.backends.signature import Signature
        from export.engines.job import BuildJob
        from export.engines.openvino import build

        folder = self.folder / "openvino"
        precision: Precision = "bf16" if candidate.endswith("bf16") else "fp32"
        if not folder.is_dir():
            folder.mkdir()
            build(BuildJob(self.graph, self.module, folder, "fp32", self.onnx, torch.device("cpu")))
        signature = Signature.read(folder, self.graph.name)
        return OpenVinoGraph(folder / f"{self.graph.name}.onnx", signature, self.threads, precision)


def refusal(candidate: str) -> str | None:
    """Why this machine cannot run a candidate; None if it can."""
    backend, precision = candidate.split()[0], candidate.split()[-1]
    if backend != "openvino":
        return None
    if reason := unavailable("openvino", "cpu"):
        return reason
    from diffsplat.backends.openvino import missing_precision

    return missing_precision("bf16" if precision == "bf16" else "fp32")


def compare(name: str, step: Step, requests: int, yardstick: str, seconds: float, least_turns: int) -> Iterator[Row]:
    """Each candidate in turns with the yardstick, after one unmeasured call of both."""
    sizes = {**step.graph.serving_sizes, step.graph.batch_axis: requests * step.graph.serving_sizes["rows"]}
    inputs = step.graph.sample_inputs(sizes)
    with torch.no_grad():
        expected = step.module(*inputs)
    against = step.build(yardstick)
    against(*inputs)
    for candidate in CANDIDATES:
        if candidate == yardstick or refusal(candidate):
            continue
        start = time.perf_counter()
        run = step.build(candidate)
        error = relative_error(run(*inputs), expected)
        first_call_s = time.perf_counter() - start
        free = two_cores_are_free()
        ours: list[float] = []
        theirs: list[float] = []
        start = time.perf_counter()
        while len(ours) < least_turns or time.perf_counter() - start < seconds:
            ours.append(milliseconds(run, inputs))
            theirs.append(milliseconds(against, inputs))
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        medians = statistics.median(ours), statistics.median(theirs)
        row = Row(name, candidate, medians[0], yardstick, medians[1], ratio, error, first_call_s, free)
        print(
            f"{name:22} {candidate:26} {row.ms:9.1f} ms {yardstick:>18} {row.yardstick_ms:9.1f} ms  {ratio:6.3f} x"
            f"   error {error:.1e}   first call {first_call_s:5.1f} s{'' if free else '   (two cores were not free)'}",
            flush=True,
        )
        yield row
        del run
        gc.collect()


def milliseconds(run: Graph, inputs: tuple[Tensor, ...]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run(*inputs)
    return 1e3 * (time.perf_counter() - start)


def nano_rows(folder: Path) -> list[Row]:
    """The demo's network."""
    bundle = open_bundle("bundles/nano")
    graph = next(graph for graph in graph_specs(bundle.spec) if graph.name == STEP)
    step = Step(graph, graph.build(bundle), folder)
    rows: list[Row] = []
    for requests in (1, 4):
        rows += compare(f"nano, {requests} request{'s' * (requests > 1)}", step, requests, "onnxruntime fp32", 6, 9)
    return rows


def sd15_rows(folder: Path) -> list[Row]:
    """A network of SD1.5's size; what it computes does not depend on its weights."""
    spec = BACKBONES["sd15"]
    graph = next(graph for graph in graph_specs(spec) if graph.name == STEP)
    torch.manual_seed(0)
    network = network_builders(spec)["denoiser"]().requires_grad_(False)
    step = Step(graph, build_graph_module(STEP, spec, network), folder)
    return list(compare("SD1.5 size, 1 request", step, 1, "torch fp32", 0, 3))


class Best(NamedTuple):
    """The fastest candidate of a step and its bar."""

    name: str
    bar: float  # at most
    candidate: str | None = None  # None where the CPU has none
    ratio: float | None = None

    @property
    def missed(self) -> bool:
        """Whether it was measured and is too slow."""
        return self.ratio is not None and self.ratio > self.bar

    def __str__(self) -> str:
        """A verdict in words."""
        found = "not measured: this CPU has none" if self.ratio is None else f"{self.candidate} {self.ratio:.3f} x"
        verdict = "" if self.ratio is None else ", MISSED" if self.missed else ", met"
        return f"bar: {self.name} at most {self.bar} x: {found}{verdict}"


def best(step: str, rows: list[Row], precision: Precision | None, bar: float) -> Best:
    """Of the rows of a step, those in one precision if it is named."""
    wanted = [row for row in rows if row.step.startswith(step) and (not precision or row.candidate.endswith(precision))]
    found = Best(f"{step}, best {precision or 'back end'}", bar)
    if not wanted:
        return found
    first = min(wanted, key=lambda row: row.ratio)
    return found._replace(candidate=first.candidate, ratio=first.ratio)


def main() -> int:
    """Print rows and bars; exit code 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_backends", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--skip-sd15", action="store_true", help="leave out the step of SD1.5's size")
    arguments = parser.parse_args()
    torch.set_num_threads(available_cores())
    for candidate in CANDIDATES:
        if reason := refusal(candidate):
            print(f"left out: {candidate}: {reason}")
    rows: list[Row] = []
    for run in (nano_rows,) if arguments.skip_sd15 else (nano_rows, sd15_rows):
        with tempfile.TemporaryDirectory() as folder:
            rows += run(Path(folder))
    bars: list[tuple[str, Precision | None, float]] = [("nano, 1 request", None, NANO_BAR)]
    bars.append(("nano, 4 requests", None, NANO_BAR))
    if not arguments.skip_sd15:
        bars += [("SD1.5 size", precision, limit) for precision, limit in SD15_BARS.items()]
    found = [best(name, rows, precision, limit) for name, precision, limit in bars]
    print("\n".join(map(str, found)))
    if arguments.json:
        report = {
            **describe_machine(),
            "rows": [row._asdict() for row in rows],
            "best": [one._asdict() for one in found],
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(one.missed for one in found))


if __name__ == "__main__":
    sys.exit(main())
